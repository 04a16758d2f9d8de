"""Overbank: memory on other machines, leased through an auth daemon, reached by RDMA, sealed before it leaves.

    import overbank

    with overbank.connect("head-1:7471") as client:
        with client.lease(64 << 20, ttl=600) as lease:
            lease.write(1_000_000, b"what does not fit here")
            assert lease.read(1_000_000, 22) == b"what does not fit here"
            lease.release()

`overbank.empty(shape, dtype, local=…)` is a numpy array that may be larger than this machine's memory.

Times are seconds. Every failure is an `Error`, of a class for each kind. In a process that was forked, connect again.
"""

from typing import TYPE_CHECKING, Any

from ._library import version
from .client import Client, connect
from .errors import (
    AuthdKeyChangedError,
    AuthdUnreachableError,
    BusyError,
    ClosedError,
    ContentsError,
    DeadlineError,
    DeviceError,
    DoesNotFitError,
    Error,
    LeaseLostError,
    LeaseOverError,
    LocalError,
    NoRoomError,
    NotTrustedError,
    PanicError,
    ProposedError,
    UsageError,
)
from .lease import Lane, Lease, OnUnknown
from .region import Faults, Region, Stats

if TYPE_CHECKING:
    from .array import Layout, SharedArray
    from .paged import empty, region_of, zeros

__all__ = [
    "AuthdKeyChangedError",
    "AuthdUnreachableError",
    "BusyError",
    "Client",
    "ClosedError",
    "ContentsError",
    "DeadlineError",
    "DeviceError",
    "DoesNotFitError",
    "Error",
    "Faults",
    "Lane",
    "Layout",
    "Lease",
    "LeaseLostError",
    "LeaseOverError",
    "LocalError",
    "NoRoomError",
    "NotTrustedError",
    "OnUnknown",
    "PanicError",
    "ProposedError",
    "Region",
    "SharedArray",
    "Stats",
    "UsageError",
    "connect",
    "empty",
    "region_of",
    "version",
    "zeros",
]


def __getattr__(name: str) -> Any:
    # Arrays need numpy, and nothing else does.
    if name in ("Layout", "SharedArray"):
        from . import array

        return getattr(array, name)
    if name in ("empty", "region_of", "zeros"):
        from . import paged

        return getattr(paged, name)
    raise AttributeError(f"module 'overbank' has no attribute {name!r}")
