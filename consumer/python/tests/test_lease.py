import array
import gc
import pathlib
import re
import threading
import unittest
import warnings
from concurrent.futures import ThreadPoolExecutor

from .stack import Stack, User, attach

import overbank
from overbank import _library, errors

MIB = 1 << 20


def setUpModule():
    global stack, ann, ben
    stack = Stack()
    ann, ben = stack.consumer("ann"), stack.consumer("ben", "red")


def tearDownModule():
    stack.stop()


class Leases(unittest.TestCase):
    def setUp(self):
        self.client = ann.connect()
        self.addCleanup(self.client.close)

    def lease(self, size=MIB, **more):
        lease = attach(self.client.lease(size, ttl=600, **more))
        self.addCleanup(lambda: lease.closed or lease.release())
        return lease

    def test_what_is_written_comes_back(self):
        lease = self.lease()
        self.assertEqual(lease.read(7, 3), b"\0\0\0")
        self.assertEqual(lease.write(1000, b"what does not fit here"), 22)
        self.assertEqual(lease.read(999, 24), b"\0what does not fit here\0")
        # Whatever has a buffer, written or not.
        numbers = array.array("d", [1.5, 2.5, -3.5])
        for data in [numbers, memoryview(numbers), memoryview(numbers.tobytes()), bytearray(numbers)]:
            self.assertEqual(lease.write(0, b"\0" * 24), 24)
            self.assertEqual(lease.write(0, data), 24)
            back = array.array("d", [0, 0, 0])
            self.assertEqual(lease.readinto(0, back), 24)
            self.assertEqual(back, numbers)
        self.assertEqual((lease.write(5, b""), lease.read(5, 0), lease.readinto(5, bytearray())), (0, b"", 0))

    def test_the_example_of_the_manual_works(self):
        manual = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
        example = re.search(r"^```python\n(import overbank\n.*?)^```$", manual, re.M | re.S)[1]
        connect = 'overbank.connect("head-1:7471")'
        self.assertIn(connect, example)
        self.assertIn(example.split("\n", 2)[2].rstrip(), re.sub("^    ", "", overbank.__doc__, flags=re.M))
        # A pool of 16 MiB has no room for all of it.
        exec(example.replace(connect, "connect()").replace("64 << 20", "2 << 20"), {"connect": ann.connect})

    def test_a_lease_knows_itself_and_outlives_its_handle(self):
        with self.client.lease(100_000, ttl=60, block=8192) as lease:
            attach(lease).write(99_999, b"x")
            self.assertEqual((lease.size, len(lease), lease.block, lease.reach), (100_000, 100_000, 8192, range(100_000)))
            self.assertTrue(lease.freshness_is_known and not lease.read_only and not lease.closed)
            self.assertTrue(50 < lease.time_left <= 60)
            self.assertTrue(100 < lease.renew(120) <= 120)
            self.assertTrue(100 < lease.time_left <= 120)
            id = lease.id
            self.assertRegex(id, "^[0-9a-f]{32}$")
        self.assertTrue(lease.closed)
        with self.client.open(id) as again:
            self.assertEqual(attach(again).read(99_998, 2), b"\0x")
            self.assertIs(again.release(10), True)
        with self.assertRaises(overbank.LeaseOverError):
            self.client.open(id)

    def test_each_failure_is_an_error_of_its_kind(self):
        lease = self.lease()
        buffer = bytearray(b"?" * 64)
        with self.assertRaisesRegex(overbank.DoesNotFitError, "64B"):
            lease.readinto(MIB - 63, buffer)
        self.assertEqual(buffer, bytes(64), "never bytes that were not verified")
        with self.assertRaises(IndexError):
            lease.write(MIB, b"x")
        with self.assertRaisesRegex(overbank.NoRoomError, "."):
            self.client.lease(1 << 40, ttl=60)
        with self.assertRaises(overbank.LocalError):
            self.client.open(lease.id)
        with self.assertRaisesRegex(overbank.DeviceError, "no-such-device"):
            lease.attach("no-such-device")
        with self.assertRaises(overbank.AuthdUnreachableError):
            overbank.connect("127.0.0.1:1", home=ann.home, leases=ann.leases)
        with self.assertRaises(overbank.AuthdKeyChangedError):
            overbank.connect(stack.address, home=ann.home, leases=ann.leases, authd_fingerprint="00" * 20)
        with User(stack, "eve").connect() as eve, self.assertRaises(overbank.NotTrustedError):
            eve.lease(4096, ttl=60)
        for what in [
            lambda: lease.read(-1, 5),
            lambda: lease.read(0, -5),
            lambda: lease.write(2**64, b"x"),
            lambda: lease.readinto(0, b"not to be written"),
            lambda: lease.readinto(0, memoryview(bytearray(20))[::2]),
            lambda: lease.write(0, memoryview(bytearray(20))[::2]),
            lambda: lease.attach(lanes=0),
            lambda: lease.attach(lanes=1000),
            lambda: lease.attach(on_unknown=9),
            lambda: lease.attach(address="here"),
            lambda: lease.attach(spin=-1),
            lambda: lease.renew(0),
            lambda: lease.share("me", "no-such-folder/x"),
            lambda: lease.share(self.client.fingerprint, "a\0b"),
            lambda: lease.share(self.client.fingerprint, "no-such-folder/x", reach=range(1, 100)),
            lambda: self.client.lease(0, ttl=60),
            lambda: self.client.lease(4096, ttl=-1),
            lambda: self.client.lease(4096, ttl=60, block=100),
            lambda: self.client.open("zz"),
            lambda: overbank.connect("a b"),
        ]:
            with self.assertRaises(overbank.UsageError) as caught:
                what()
            self.assertIsInstance(caught.exception, ValueError)
            self.assertGreater(len(str(caught.exception)), 10)

    def test_what_is_closed_stays_closed(self):
        lease = self.client.lease(4096, ttl=60)
        lease.release()
        lease.close()
        for what in [lambda: lease.read(0, 1), lambda: lease.id, lease.release, lambda: lease.__enter__()]:
            with self.assertRaises(overbank.ClosedError):
                what()
        # The library says so too, whoever closed it there.
        client = ann.connect()
        _library.call("overbank_client_close", client._value)
        with self.assertRaisesRegex(overbank.ClosedError, "no open client"):
            client.fingerprint
        with self.assertRaises(overbank.ClosedError):
            client.close()
        client.close()

    def test_a_lease_that_is_forgotten_is_closed_with_a_warning(self):
        lease = self.client.lease(4096, ttl=60)
        id = lease.id
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del lease
            gc.collect()
        self.assertIn(ResourceWarning, [warning.category for warning in caught])
        self.client.open(id).release()

    def test_two_threads_with_one_lease_are_told_so(self):
        lease = self.lease(8 * MIB)
        busy = threading.Event()

        def read(_):
            for _ in range(200):
                if busy.is_set():
                    break
                try:
                    lease.read(0, 8 * MIB)
                except overbank.BusyError:
                    busy.set()

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(read, range(2)))
        self.assertTrue(busy.is_set())

    def test_lanes_are_for_threads_side_by_side(self):
        lease = self.lease(8 * MIB)
        attach(lease, lanes=4)
        part = 8 * MIB // 4
        with lease.split(4) as lanes, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda at: lanes[at].write(at * part, bytes([at + 1]) * part), range(4)))
            with self.assertRaises(overbank.BusyError):
                lease.read(0, 1)
            with self.assertRaises(overbank.BusyError):
                lease.close()
            self.assertFalse(lease.closed)
            self.assertEqual([lane.read(at * part, 1) for at, lane in enumerate(lanes)], [b"\1", b"\2", b"\3", b"\4"])
        with self.assertRaises(overbank.ClosedError):
            lanes[0].read(0, 1)
        self.assertEqual(lease.read(part - 1, 2), b"\1\2")
        with self.assertRaisesRegex(overbank.UsageError, "attached with 4"):
            lease.split(3).__enter__()

    def test_a_share_is_opened_from_its_file_or_its_bytes(self):
        lease = self.lease(32 << 10)
        lease.write(0, b"a" * 32768)
        with ben.connect() as client:
            bundle = stack.root / "for-ben"
            lease.share(client.fingerprint, bundle, reach=range(8192, 16384), read_only=True, ttl=60)
            for given in [bundle, bundle.read_bytes()]:
                with client.open_share(given, sender=self.client.fingerprint) as shared:
                    attach(shared)
                    self.assertEqual((shared.reach, shared.read_only, shared.id), (range(8192, 16384), True, lease.id))
                    self.assertEqual(shared.read(8192, 8192), b"a" * 8192)
                    with self.assertRaises(overbank.DoesNotFitError):
                        shared.read(8191, 2)
                    with self.assertRaises(overbank.NotTrustedError):
                        shared.write(8192, b"b")
            with self.assertRaises(overbank.NotTrustedError):
                client.open_share(bundle, sender="00" * 20)
            with self.assertRaises(overbank.LocalError):
                client.open_share(b"nonsense")
            with self.assertRaises(overbank.LocalError):
                client.open_share(stack.root / "no such file")


class Library(unittest.TestCase):
    HEADER = (pathlib.Path(__file__).parents[2] / "c/overbank.h").read_text()

    def test_every_status_of_the_header_has_a_class_and_no_other(self):
        found = re.findall(r"^  OVERBANK_([A-Z_]+) = (\d+),$", self.HEADER, re.M)
        statuses = {int(number) for name, number in found if not name.startswith(("ON_UNKNOWN", "FAULTS")) and name != "OK"}
        self.assertEqual(statuses, set(errors.BY_STATUS))
        for name, number in found:
            if name.startswith("ON_UNKNOWN_"):
                self.assertEqual(overbank.OnUnknown[name[len("ON_UNKNOWN_") :]], int(number))
            elif name.startswith("FAULTS_"):
                self.assertEqual(overbank.Faults[name[len("FAULTS_") :]], int(number))
            elif int(number) > 1:
                words = "".join(word.capitalize() for word in name.split("_"))
                self.assertEqual(errors.BY_STATUS[int(number)].__name__, f"{words}Error")
        self.assertIsInstance(errors.of(77, "of a later version"), overbank.Error)
        self.assertEqual(errors.of(77, "of a later version").status, 77)

    def test_every_function_of_the_header_is_known_with_as_many_arguments(self):
        found = dict(re.findall(r"^enum overbank_status (overbank_\w+)\(([^)]*)\)", self.HEADER, re.M))
        self.assertEqual({name: len(of.split(",")) for name, of in found.items()}, {n: len(a) for n, a in _library.FUNCTIONS.items()})

    def test_every_struct_of_the_header_has_these_fields(self):
        structs = [_library.Config, _library.AttachOptions, _library.ShareOptions, _library.RegionOptions, _library.Stats]
        self.assertEqual(len(structs), self.HEADER.count("  size_t size;"))
        for struct in structs:
            body = self.HEADER.split(f"typedef struct {struct.__doc__} {{")[1].split("}")[0]
            fields = re.findall(r"^  (?:const )?(?:struct )?(\w+) (\*?)(\w+);$", body, re.M)
            of = {_library.c_size_t: "size_t", _library.c_uint64: "uint64_t", _library.c_uint32: "uint32_t", _library.c_char_p: "char*"}
            of[_library.POINTER(_library.AttachOptions)] = "overbank_attach_options*"
            # size_t and uint64_t are one type to ctypes.
            plain = lambda kind: kind.replace("size_t", "uint64_t")
            self.assertEqual(
                [(name, plain(kind + star)) for kind, star, name in fields],
                [(name, plain(of[kind])) for name, kind in struct._fields_],
            )

    def test_the_versions_are_one(self):
        root = pathlib.Path(__file__).parents[3]
        version = re.search(r'^\[workspace.package\]\nversion = "(.*)"', (root / "Cargo.toml").read_text(), re.M)[1]
        self.assertEqual(overbank.version(), version)
        self.assertIn(f'\nversion = "{version}"\n', (root / "consumer/python/pyproject.toml").read_text())
        self.assertEqual(_library.SONAME, "liboverbank.so." + version.rsplit(".", 1)[0])
