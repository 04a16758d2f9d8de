"""One rank of a job: opens its part of a shared array, doubles its own rows, and says so."""

import pathlib
import sys

import numpy as np

from .stack import attach

import overbank

authd, home, leases, bundle, layout, part = sys.argv[1:7]
layout = eval(layout, {"Layout": overbank.Layout})
with overbank.connect(authd, home=home, leases=leases) as client:
    with overbank.SharedArray.open(client, pathlib.Path(bundle), layout, int(part)) as array:
        attach(array.lease)
        own = array[array.rows]
        assert own.shape == (len(array.rows), *layout.shape[1:])
        # Row by row, and then all: neighbours of other ranks are in no block of these.
        for row in array.rows:
            array[row] = own[row - array.rows.start] * 2
        array[array.rows] = array[array.rows] + np.asarray(1, layout.dtype)
        for wrong in (array.rows.start - 1, array.rows.stop):
            if 0 <= wrong < len(array):
                try:
                    array[wrong] = 0
                except overbank.UsageError:
                    continue
                raise AssertionError(f"row {wrong} is not ours")
print("done", part)
