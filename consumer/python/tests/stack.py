"""An auth daemon, a provider and borrowers as real processes, each in a directory of its own."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading

BIN = pathlib.Path(os.environ.get("OVERBANK_BIN") or pathlib.Path(__file__).parents[3] / "target/debug")
DEVICE = os.environ.get("OVERBANK_TEST_DEVICE", "soft")
os.environ.setdefault("OVERBANK_LIBRARY", str(BIN / "liboverbank.so"))

import overbank  # noqa: E402


def _environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERBANK", "LD_", "RUST_LOG"))}
    return {**kept, **more}


class Daemon:
    """A daemon: ready, and killed at the end."""

    def __init__(self, *command):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=_environment(),
        )
        deadline = threading.Timer(20, self.process.kill)
        deadline.start()
        self.ready = self.process.stdout.readline()
        deadline.cancel()
        if not self.ready:
            self.log.seek(0)
            raise AssertionError(f"{command} is not ready: {self.log.read().decode()}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


class User:
    """Somebody with an identity, and a directory for lease files."""

    def __init__(self, stack, name):
        self.stack, self.home, self.leases = stack, stack.root / name, stack.root / f"{name}.leases"

    def run(self, *words):
        done = subprocess.run(
            [BIN / "overbank", *words],
            stdout=subprocess.PIPE,
            timeout=60,
            check=True,
            env=_environment(
                OVERBANK_HOME=str(self.home), OVERBANK_AUTHD=self.stack.address, XDG_RUNTIME_DIR=str(self.stack.root)
            ),
        )
        return json.loads(done.stdout) if "--json" in words else done.stdout

    def connect(self):
        return overbank.connect(self.stack.address, home=self.home, leases=self.leases)


class Stack:
    """All of it, ready; `stop` ends it."""

    def __init__(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="overbank-"))
        self.daemons = []
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self):
        state = self.root / "authd"
        init = subprocess.run(
            [BIN / "overbank-authd", "init", "--json", "--state", state], stdout=subprocess.PIPE, check=True, env=_environment()
        )
        authd = Daemon(BIN / "overbank-authd", "serve", "--listen", "127.0.0.1:0", "--state", state)
        self.daemons.append(authd)
        self.address = authd.ready.split("listening on ")[1].split(",")[0]
        self.operator = User(self, "operator")
        self.operator.run("join", json.loads(init.stdout)["operator_invitation"])
        provider = [BIN / "overbank-provider", "serve", "--authd", self.address, "--state", self.root / "provider"]
        provider += ["--pool", "16MiB", "--pages", "plain", "--device", DEVICE]
        self.daemons.append(Daemon(*provider, "--invitation", self._invite("--role", "provider")))

    def _invite(self, *role):
        return self.operator.run("trust", "invite", "--json", *role)["invitation"]

    def consumer(self, name, tenant="blue"):
        user = User(self, name)
        user.run("join", self._invite("--role", "consumer", "--tenant", tenant))
        return user

    def stop(self):
        for daemon in reversed(self.daemons):
            daemon.kill()
        shutil.rmtree(self.root)


def attach(lease, **more):
    """On the device that the provider uses."""
    lease.attach(DEVICE, **more)
    return lease
