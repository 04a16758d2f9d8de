import errno
import gc
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np

from .stack import DEVICE, Stack

import overbank
from overbank import Faults, Region

KIB = 1 << 10
MIB = 1 << 20


def setUpModule():
    global stack, ann
    stack = Stack()
    ann = stack.consumer("ann")


def tearDownModule():
    stack.stop()


def leases():
    """Those that have not ended."""
    return [lease["lease"] for lease in ann.run("lease", "list", "--json")["leases"] if lease["state"] != "ended"]


class Regions(unittest.TestCase):
    def setUp(self):
        self.client = ann.connect()
        self.addCleanup(self.client.close)
        self.addCleanup(self.all_ends)

    def all_ends(self):
        gc.collect()
        until = time.monotonic() + 10
        while leases() and time.monotonic() < until:
            time.sleep(0.05)
        self.assertEqual(leases(), [])

    def empty(self, *args, **more):
        return overbank.empty(*args, **{"local": 256 * KIB, "client": self.client, "device": DEVICE, **more})

    def region(self, size=MIB, local=256 * KIB, **more):
        return self.client.lease(size, ttl=600).region(local, device=DEVICE, **more)

    def test_an_array_larger_than_what_may_be_here_keeps_every_number(self):
        for more in [{}, {"page": 16 * KIB, "local": 512 * KIB}]:
            array = self.empty((250, 1000), "f8", **more)
            self.assertEqual((type(array), array.shape, array.dtype), (np.ndarray, (250, 1000), np.dtype("f8")))
            self.assertEqual((array.sum(), array.flags.c_contiguous, array.flags.writeable), (0, True, True))
            array[:] = np.arange(250_000).reshape(250, 1000)
            self.assertEqual(array.sum(), 249_999 * 125_000)
            array[::3] *= 2
            expected = np.arange(250_000.0).reshape(250, 1000)
            expected[::3] *= 2
            self.assertTrue((array == expected).all() and (array.T @ array[:, 0] == expected.T @ expected[:, 0]).all())
            stats = overbank.region_of(array).stats()
            local, page = more.get("local", 256 * KIB), more.get("page", 4 * KIB)
            self.assertGreater(stats.evicted, 2 * MIB // page)
            self.assertGreater(stats.fetched, 2 * MIB // page)
            self.assertTrue(stats.stored and stats.faults and 0 < stats.fault_p50 <= stats.fault_p99 < 10, stats)
            self.assertEqual((stats.local_bytes, stats.page_bytes, stats.bytes), (local, page, -(-2_000_000 // page) * page))
            self.assertTrue(local // 2 < stats.peak_resident_bytes <= local and stats.resident_bytes <= local, stats)
            del array

    def test_arrays_are_of_any_kind_and_order_that_leaves_the_process(self):
        for shape, dtype, order in [
            (7, "u1", "C"),
            ((3, 4, 5), "c16", "F"),
            ([10, 3], ">i4", "F"),
            ((2, 2), [("a", "u1"), ("b", "f8")], "C"),
            ((5,), "M8[s]", "C"),
            (np.int64(9), "(3,)f4", "C"),
        ]:
            array = overbank.zeros(shape, dtype, order, local=128 * KIB, client=self.client, device=DEVICE)
            like = np.zeros(shape, dtype, order)
            self.assertEqual((array.shape, array.dtype, array.strides), (like.shape, like.dtype, like.strides))
            self.assertTrue((array == like).all())
            array[...] = like
        self.assertEqual(self.empty(5).dtype, np.dtype(float))

    def test_threads_share_an_array(self):
        array = self.empty((8, 50_000), "i8")

        def fill(row):
            for turn in range(3):
                array[row] = np.arange(50_000) * (row + turn)
            return int(array[row].sum())

        with ThreadPoolExecutor(4) as pool:
            sums = list(pool.map(fill, range(8)))
        self.assertEqual(sums, [49_999 * 25_000 * (row + 2) for row in range(8)])
        self.assertEqual(array.sum(), sum(sums))

    def test_a_region_lives_as_long_as_anything_that_is_in_it(self):
        array = self.empty((1000, 1000), "u2")
        [lease] = leases()
        array[:] = 7
        region = overbank.region_of(array)
        self.assertEqual(region.lease_id, lease)
        del region
        for further in [
            lambda array: array[100:],
            lambda array: array.reshape(-1).view("u1"),
            memoryview,
            lambda view: np.frombuffer(view, "u1"),
            lambda array: np.asarray(array)[9:],
        ]:
            array = further(array)
            gc.collect()
            self.assertEqual(leases(), [lease])
            self.assertEqual(overbank.region_of(array).lease_id, lease)
        self.assertEqual(set(array.tolist()), {0, 7})
        copy = array.copy()
        del array
        self.all_ends()
        self.assertEqual(set(copy.tolist()), {0, 7})
        for other in [copy, np.empty(3), memoryview(b"abc"), None]:
            with self.assertRaises(overbank.UsageError):
                overbank.region_of(other)

    def test_with_ends_a_region_or_its_last_array_does(self):
        with self.region() as region:
            self.assertEqual((len(region), region.size, region.closed, leases()), (MIB, MIB, False, [region.lease_id]))
            region.check()
        self.assertTrue(region.closed)
        self.assertEqual(leases(), [])
        with self.region() as region:
            array = region.array((10, 10), "f4", offset=4096)
            other = region.array(MIB, "u1")
            array[:] = 1.5
            self.assertEqual(other[4096:4500].view("f4")[:101].tolist(), [1.5] * 100 + [0])
            with self.assertRaisesRegex(overbank.BusyError, "in use"):
                region.release()
        self.assertEqual((region.closed, array.sum(), region.stats().bytes), (False, 150, MIB))
        with self.assertRaises(overbank.ClosedError):
            region.array(1)
        del other
        self.assertFalse(region.closed)
        del array
        self.assertTrue(region.closed)
        for what in [region.stats, region.check, region.release, region.hold, lambda: region.array(1), region.__enter__]:
            with self.assertRaises(overbank.ClosedError):
                what()
        region = self.region()
        self.assertIs(region.release(10), True)
        self.assertEqual(leases(), [])

    def test_pages_come_ahead_unless_that_is_not_wanted(self):
        for ahead, wanted in [(None, True), (0, False)]:
            with self.region(ahead=ahead) as region:
                array = region.array(MIB, "u1")
                array[:] = 1
                self.assertEqual(array.sum(), MIB)
                stats = region.stats()
                self.assertEqual((stats.fetched > 100, stats.ahead > 0), (True, wanted), stats)
                del array

    def test_a_lease_becomes_a_region_or_stays_what_it_was(self):
        lease = self.client.lease(MIB, ttl=600, block=16 * KIB)
        lease.attach(DEVICE)
        lease.write(0, b"x")
        for wrong in [
            {"local": 0},
            {"local": -1},
            {"page": 4096},
            {"page": 48 * KIB},
            {"page": -1},
            {"faults": 7},
            {"fetchers": 99},
            {"ahead": -1},
            {"patience": 0},
            {"renew_to": -1},
            {"address": "here"},
        ]:
            with self.assertRaises(overbank.UsageError, msg=wrong):
                lease.region(**{"local": MIB, "device": DEVICE, **wrong})
        with self.assertRaises(overbank.DeviceError):
            lease.region(MIB, device="no-such-device")
        lease.attach(DEVICE)
        self.assertEqual(lease.read(0, 2), b"x\0")
        id = lease.id
        more = {"ahead": 0, "fetchers": 1, "patience": 60, "renew_to": 900, "spin": 1e-6, "deadline": 5}
        with lease.region(MIB, page=32 * KIB, device=DEVICE, **more) as region:
            self.assertTrue(lease.closed)
            self.assertEqual((region.lease_id, region.stats().page_bytes, region.array(1, "u1")[0]), (id, 32 * KIB, 0))
            with self.assertRaises(overbank.ClosedError):
                lease.read(0, 1)

    def test_what_cannot_be_an_array_is_refused_and_leases_nothing(self):
        for wrong in [((4,), "O"), ((4,), "V0"), ((0,), "f8"), ((), "V0"), ((-1, -1), "f8"), ((4,), "f8", "K")]:
            with self.assertRaises(overbank.UsageError, msg=wrong):
                self.empty(*wrong)
        for wrong in [{"local": 1}, {"page": 5000}, {"faults": 9}, {"ttl": 0}]:
            with self.assertRaises(overbank.UsageError, msg=wrong):
                self.empty((1000,), **wrong)
        with self.assertRaises(overbank.NoRoomError):
            self.empty((1 << 40,))
        with self.assertRaises(TypeError):
            overbank.empty((4,))
        self.assertEqual(leases(), [])
        with self.region() as region:
            for wrong in [((MIB // 8 + 1,), "f8"), ((1,), "u1", MIB)]:
                with self.assertRaises(overbank.DoesNotFitError, msg=wrong):
                    region.array(*wrong[:2], offset=wrong[2] if len(wrong) > 2 else 0)
            with self.assertRaises(overbank.UsageError):
                region.array(1, offset=-8)
            array = region.array(100, "u1", offset=50)
            self.assertEqual(region.bytes_of(array), range(50, 150))
            self.assertEqual(region.bytes_of(array[99:9:-10]), range(69, 150))
            self.assertEqual(len(region.bytes_of(array[:0])), 0)
            for other in [np.empty(5), self.empty(5)]:
                with self.assertRaises(overbank.UsageError):
                    region.bytes_of(other)
            for wrong in [range(0, 10, 2), range(5, 2), range(-5, 5)]:
                with self.assertRaises(overbank.UsageError, msg=wrong):
                    region.hold(wrong)
            with self.assertRaises(overbank.DoesNotFitError):
                region.fetch(range(0, MIB + 1))

    def test_system_calls_use_what_is_held_or_what_a_thread_brings(self):
        path = stack.root / "numbers"
        array = self.empty((MIB,), "u1")
        region = overbank.region_of(array)
        array[:] = np.arange(MIB) % 251
        region.fetch(range(MIB // 2, MIB))
        part = array[: 16 * KIB]
        with open(path, "wb", buffering=0) as file, self.assertRaises(OSError) as caught:
            file.write(part)
        self.assertEqual(caught.exception.errno, errno.EFAULT)
        region.hold(region.bytes_of(part))
        region.fetch()
        with open(path, "wb", buffering=0) as file:
            self.assertEqual(file.write(part), 16 * KIB)
        with self.assertRaises(overbank.DoesNotFitError):
            region.hold()
        region.unhold()
        part[:] = 0
        part[:] = np.fromfile(path, "u1")
        self.assertTrue((array == np.arange(MIB) % 251).all())
        # In whole pages.
        self.assertEqual(region.discard(range(1, 12 * KIB)), 8 * KIB)
        self.assertEqual((int(array[4095]), array[4096 : 12 * KIB].any(), int(array[12 * KIB])), (4095 % 251, False, 12288 % 251))
        try:
            array = self.empty((MIB,), "u1", faults=Faults.THREAD)
        except overbank.LocalError as error:
            self.assertIn("userfaultfd", str(error))
            return
        with open(path, "r+b", buffering=0) as file:
            array[:] = 1
            array[-16 * KIB :] = 0
            self.assertEqual(file.write(array), MIB)
            file.seek(0)
            array[:] = 0
            self.assertEqual(file.readinto(array), MIB)
        self.assertEqual(array.sum(), MIB - 16 * KIB)

    def test_a_forked_child_has_no_array_and_ends_none(self):
        array = self.empty((MIB,), "u1")
        array[:] = 5
        region = overbank.region_of(array)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                region.stats()
            except overbank.ClosedError as error:
                status = 0 if "forked" in str(error) else 2
            del region, array
            gc.collect()
            os._exit(status)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual((int(array[::4096].sum()), leases()), (5 * 256, [region.lease_id]))
        child = os.fork()
        if child == 0:
            os._exit(int(array[MIB // 2]))
        status = os.waitpid(child, 0)[1]
        self.assertTrue(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV, status)
        # Programs can be started, and they inherit nothing.
        self.assertEqual(subprocess.run(["true"], check=True).returncode, 0)

    def test_the_interpreter_s_end_is_the_region_s(self):
        program = """
            import atexit, sys
            @atexit.register
            def last():
                print("sum", held.sum())
            import overbank
            authd, home, leases, device = sys.argv[1:]
            client = overbank.connect(authd, home=home, leases=leases)
            held = overbank.empty((1 << 20,), "u1", local=1 << 18, client=client, device=device)
            held[:] = 3
        """
        words = [stack.address, ann.home, ann.leases, DEVICE]
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, words)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        self.assertEqual((done.returncode, done.stdout), (0, f"sum {3 * MIB}\n"))
        self.all_ends()

    def test_the_examples_of_the_manual_work(self):
        manual = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
        [whole] = re.findall(r"^```python\n(# Eight gigabytes.*?)^```$", manual, re.M | re.S)
        [held] = re.findall(r"^  ```python\n(.*?)^  ```$", manual, re.M | re.S)
        [several] = re.findall(r"^```python\n(with client\.lease\(64 << 20, ttl=600\)\.region.*?)^```$", manual, re.M | re.S)
        names = {"overbank": overbank, "client": self.client, "print": lambda stats: self.assertGreater(stats.evicted, 100)}
        env = {"OVERBANK_AUTHD": stack.address, "OVERBANK_HOME": str(ann.home), "XDG_RUNTIME_DIR": str(stack.root)}
        # A pool of 16 MiB has no room for all of it.
        whole = whole.replace("1_000_000_000", "1_000_000").replace("1 << 30", "1 << 20")
        body, end = whole.split("del array")
        with mock.patch.dict(os.environ, env):
            exec(body, names)
        self.assertEqual(names["total"], 1_500_000)
        path = stack.root / "file"
        path.write_bytes(b"\1" * 32768)
        with open(path, "rb", buffering=0) as file:
            exec(textwrap.dedent(held), {**names, "file": file})
        self.assertEqual(names["array"][:4096].view("u1").sum(), 32768)
        exec("del array" + end, names)
        self.all_ends()
        exec(several.replace("64 << 20", "12 << 20"), names)
        self.assertEqual((names["a"].any(), names["b"].sum()), (False, 7_000_000))
        names.clear()
