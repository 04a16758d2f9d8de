import contextlib
import os
import pathlib
import re
import subprocess
import sys
import unittest

import numpy as np

from .stack import Stack, attach

import overbank
from overbank import Layout, SharedArray

RANKS = 3


def setUpModule():
    global stack, ann, ranks
    stack = Stack()
    ann = stack.consumer("ann")
    ranks = [stack.consumer(f"rank-{at}") for at in range(RANKS)]


def tearDownModule():
    stack.stop()


class Layouts(unittest.TestCase):
    def test_rows_lie_in_parts_that_share_no_block(self):
        for shape, dtype, parts, block in [
            ((10,), "u1", 3, 4096),
            ((1000, 7), "f8", 7, 512),
            ((5, 3, 2), "c16", 5, 4096),
            ((4096, 1), "f4", 4, 4096),
            ((17, 1000), "f8", 4, 4096),
        ]:
            layout = Layout(shape, dtype, parts, block)
            owners, places = {}, {}
            for part in range(parts):
                rows = layout.rows(part)
                self.assertTrue(abs(len(rows) - shape[0] / parts) < 1)
                self.assertTrue(layout.reach(part).start % block == 0 and layout.reach(part).stop % block == 0)
                for row in rows:
                    self.assertEqual(layout.part_of(row), part)
                    [(piece, offset)] = layout.pieces(range(row, row + 1))
                    self.assertEqual(piece, range(row, row + 1))
                    self.assertTrue(offset in layout.reach(part) and offset + layout.row_nbytes <= layout.reach(part).stop)
                    places[row] = offset
                    for at in range(offset // block, (offset + layout.row_nbytes - 1) // block + 1):
                        self.assertEqual(owners.setdefault(at, part), part, "two parts in one block")
            self.assertEqual(sorted(places), list(range(shape[0])))
            at = sorted(places.values())
            self.assertTrue(all(after - before >= layout.row_nbytes for before, after in zip(at, at[1:])))
            self.assertLessEqual(at[-1] + layout.row_nbytes, layout.nbytes)
            pieces = list(layout.pieces(range(shape[0])))
            self.assertEqual([piece for piece, _ in pieces], [layout.rows(part) for part in range(parts)])

    def test_what_cannot_be_laid_out_is_refused(self):
        for wrong in [((), "f8"), ((0,), "f8"), ((4, 0), "f8"), ((4,), "O"), ((4,), "V0"), ((4,), "f8", 5), ((4,), "f8", 0)]:
            with self.assertRaises(overbank.UsageError, msg=wrong):
                Layout(*wrong)
        layout = Layout((4,), "f8", 2)
        for wrong in [lambda: layout.rows(2), lambda: layout.reach(-1), lambda: layout.part_of(4)]:
            with self.assertRaises(overbank.UsageError):
                wrong()


class Arrays(unittest.TestCase):
    def setUp(self):
        self.client = ann.connect()
        self.addCleanup(self.client.close)

    def array(self, layout, part=None):
        lease = attach(self.client.lease(layout.nbytes, ttl=600))
        self.addCleanup(lease.release)
        return SharedArray(lease, layout, part)

    def test_rows_are_written_and_read_as_numpy_does(self):
        for dtype in ["f8", ">i4", "c16", "M8[s]", "?", [("a", "u1"), ("b", "f8")]]:
            array = self.array(Layout((50, 9), dtype, parts=4))
            values = np.arange(50 * 9).reshape(50, 9).astype("i8")
            if dtype == [("a", "u1"), ("b", "f8")]:
                given = np.zeros((50, 9), dtype)
                given["b"] = values
            else:
                given = values.astype(dtype)
            self.assertTrue((array[:] == np.zeros((50, 9), dtype)).all())
            array[:] = given
            for key in [slice(None), slice(3, 17), slice(-5, None), slice(40, 400), slice(9, 2), 0, 49, -1, np.int64(7)]:
                self.assertEqual((array[key].shape, array[key].dtype), (given[key].shape, given[key].dtype), key)
                self.assertTrue((array[key] == given[key]).all(), key)
            array[7] = given[3]
            array[12:14] = given[0]
            array[range(20, 22)] = given[30:32][:, ::-1]
            expected = given.copy()
            expected[7], expected[12:14], expected[20:22] = given[3], given[0], given[30:32][:, ::-1]
            self.assertTrue((array[:] == expected).all())
        self.assertEqual((len(array), array.shape, array.rows), (50, (50, 9), range(50)))

    def test_what_is_no_row_is_refused(self):
        array = self.array(Layout((50, 9), "f8", parts=4), part=1)
        for wrong in [50, -51, range(40, 51)]:
            with self.assertRaises(IndexError, msg=wrong):
                array[wrong]
        for wrong in ["a", (1, 2), 1.5, None, [1, 2]]:
            with self.assertRaises(TypeError, msg=wrong):
                array[wrong]
        with self.assertRaises(overbank.UsageError):
            array[::2]
        with self.assertRaises(ValueError):
            array[array.rows] = np.zeros((3, 9))
        with self.assertRaises(ValueError):
            array[array.rows.start] = np.zeros((2, 9))
        for wrong in [0, slice(0, 13), slice(None), 49]:
            with self.assertRaises(overbank.UsageError, msg=wrong):
                array[wrong] = 1
        self.assertTrue((array[:] == 0).all(), "nothing was written")
        for out in [np.empty((2, 9), "f4"), np.empty((3, 9)), np.empty((2, 18))[:, ::2]]:
            with self.assertRaises(overbank.UsageError):
                array.readinto(slice(0, 2), out)
        with self.assertRaises(overbank.UsageError):
            SharedArray(array.lease, Layout((50, 9000), "f8"))
        with self.assertRaises(overbank.UsageError):
            SharedArray(array.lease, Layout((5, 9), "f8", block=512))
        with self.assertRaises(overbank.UsageError):
            SharedArray(array.lease, array.layout, 4)

    def test_ranks_write_rows_of_their_own_at_the_same_time(self):
        for whole in [False, True]:
            # Small rows: two ranks would meet in one block if parts did not begin on their own.
            layout = Layout((100, 5), "i8", parts=RANKS)
            array = self.array(layout)
            values = np.arange(500).reshape(100, 5)
            array[:] = values
            processes = []
            for at, rank in enumerate(ranks):
                with rank.connect() as client:
                    fingerprint = client.fingerprint
                bundle = stack.root / f"part-{at}"
                array.share(at, fingerprint, bundle, whole=whole)
                words = [stack.address, rank.home, rank.leases, bundle, repr(layout), at]
                command = [sys.executable, "-W", "error", "-m", "tests.rank", *map(str, words)]
                processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
            said = [process.communicate(timeout=60)[0] for process in processes]
            self.assertEqual(said, [f"done {at}\n" for at in range(RANKS)])
            self.assertTrue((array[:] == values * 2 + 1).all())
            self.assertFalse(array.lease.freshness_is_known)

    def test_the_example_of_the_manual_works(self):
        manual = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
        example = re.search(r"^```python\n(layout = .*?)^```$", manual, re.M | re.S)[1].replace("1_000_000", "1_000")
        holder, rank = example.split("# rank 3\n")
        before = pathlib.Path.cwd()
        os.chdir(stack.root)
        self.addCleanup(os.chdir, before)
        with ranks[0].connect() as client, contextlib.ExitStack() as held:
            names = {"overbank": overbank, "client": self.client, "fingerprints": [client.fingerprint] * 8}
            exec(holder, names)
            held.callback(names["lease"].release)
            mine = names["array"]
            names["client"] = client
            exec(rank, names)
            with names["array"] as theirs:
                self.assertEqual((theirs.part, names["first"].tolist()), (3, [1.5] * 64))
            self.assertTrue((mine[mine.layout.rows(3)] == 1.5).all() and (mine[:375] == 0).all())

    def test_a_part_alone_is_all_that_its_rank_reaches(self):
        layout = Layout((9, 1000), "f4", parts=3)
        array = self.array(layout)
        array[:] = 4.5
        with ranks[0].connect() as client:
            array.share(1, client.fingerprint, stack.root / "one", ttl=60)
            with SharedArray.open(client, stack.root / "one", layout) as theirs:
                attach(theirs.lease)
                self.assertEqual(theirs.rows, range(3, 6))
                self.assertTrue((theirs[3:6] == 4.5).all())
                for wrong in [0, slice(2, 4), slice(5, 7), 8]:
                    with self.assertRaises(overbank.DoesNotFitError):
                        theirs[wrong]
                    with self.assertRaises(overbank.UsageError):
                        theirs[wrong] = 1
            # With the whole of it, every row is read, and the same ones written.
            array.share(1, client.fingerprint, stack.root / "whole", whole=True)
            with SharedArray.open(client, stack.root / "whole", layout, part=1) as theirs:
                attach(theirs.lease)
                self.assertTrue((theirs[:] == 4.5).all())
                theirs[theirs.rows] = 5.5
                with self.assertRaises(overbank.UsageError):
                    theirs[2] = 5.5
            self.assertEqual(array[:][:, 0].tolist(), [4.5] * 3 + [5.5] * 3 + [4.5] * 3)
            # Opened for nothing, and closed again.
            with self.assertRaises(overbank.UsageError):
                SharedArray.open(client, stack.root / "one", Layout((9, 100_000), "f4"))
            SharedArray.open(client, (stack.root / "one").read_bytes(), layout, sender=self.client.fingerprint).close()
