"""numpy arrays that may be larger than this machine's memory: each in a region of its own."""

import contextlib
import math
import mmap
from typing import Any, Literal, Optional, Sequence, Union

import numpy as np

from .client import Client, connect
from .errors import Error, UsageError
from .region import Faults, Region, _Pages

#: The largest block of a lease.
_MAX_BLOCK = 1 << 20


def empty(
    shape: Union[int, Sequence[int]],
    dtype: Any = float,
    order: Literal["C", "F"] = "C",
    *,
    local: int,
    ttl: float = 600.0,
    client: Optional[Client] = None,
    device: Optional[str] = None,
    page: Optional[int] = None,
    faults: Faults = Faults.SIGNAL,
) -> "np.ndarray[Any, Any]":
    """An array like `numpy.empty`'s, of zeros, of which at most `local` bytes are on this machine at a time. Its region, which
    `region_of` finds, lives as long as the array, its views, and whatever else was made of it without copying.

    shape, dtype, order: as numpy takes them; elements cannot be objects.
    local: bytes of it that may be here, 32 pages at least.
    ttl: seconds that the lease lasts without this process; it is renewed as long as the array lives.
    client: who leases; by default a connection as the environment says (OVERBANK_AUTHD, OVERBANK_HOME).
    device: "auto" (the default), "soft", or the name of an RDMA device.
    page: bytes that come and go together, a power of two up to 2 MiB; by default 4096, or the kernel's page where that is larger.
        More suits arrays that are walked through in order.
    faults: who brings a page that is touched and not here.

    For what else can be said of a region, see `Lease.region` and `Region.array`.
    """
    lengths = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    nbytes = math.prod(int(length) for length in lengths) * np.dtype(dtype).itemsize
    if nbytes < 1 or min(lengths, default=1) < 0:
        raise UsageError(f"an array of {np.dtype(dtype)} of the shape {shape} needs no memory")
    whole = page or max(4096, mmap.PAGESIZE)
    own = client or connect()
    try:
        lease = own.lease(-(-nbytes // whole) * whole, ttl, block=min(page, _MAX_BLOCK) if page else None)
    finally:
        if client is None:
            own.close()
    try:
        region = lease.region(local, page=page, faults=faults, device=device)
    except BaseException:
        # That it cannot be given back now is not why this failed: it expires.
        with contextlib.suppress(Error):
            if not lease.closed:
                lease.release(0)
        raise
    return region.array(lengths, dtype, order=order)


#: An array of `empty` holds zeros.
zeros = empty


def region_of(array: Any) -> Region:
    """The region that an array is in, or a view of one."""
    base = array
    while base is not None:
        if isinstance(base, _Pages):
            return base.region
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    raise UsageError("this array is not in a region: overbank.empty makes one that is")
