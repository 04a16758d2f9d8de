"""A region: a lease as memory, of which only so many bytes are on this machine at a time."""

import enum
import math
from ctypes import byref, c_bool, c_size_t, c_uint64, c_void_p, create_string_buffer, sizeof
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, Literal, NamedTuple, Optional, Sequence, Set, Tuple, Type, Union

from . import _library
from ._library import Handle, call, milliseconds
from .errors import BusyError, ClosedError, DoesNotFitError, UsageError

if TYPE_CHECKING:
    import numpy as np


class Faults(enum.IntEnum):
    """Who brings a page that is touched and not here."""

    #: The thread that touched it: the fastest way, and any user may. A system call that is given memory which is not here fails
    #: with EFAULT ("Bad address"): `hold` it first.
    SIGNAL = 0
    #: A thread of the region's own. System calls work as on any memory. Needs `sysctl vm.unprivileged_userfaultfd=1`, or read and
    #: write access to /dev/userfaultfd, or CAP_SYS_PTRACE.
    THREAD = 1


class Stats(NamedTuple):
    """What a region has done so far, and how much of it is here. Pages are the region's own."""

    #: Bytes of the region.
    bytes: int
    #: Bytes of a page.
    page_bytes: int
    #: Bytes that may be here.
    local_bytes: int
    #: Bytes that are here.
    resident_bytes: int
    #: The most that were here.
    peak_resident_bytes: int
    #: Touches of what was not here, or not yet for writing.
    faults: int
    #: Of those, first writes to pages that were here for reading.
    write_faults: int
    #: Pages that came from the lease.
    fetched: int
    #: Of those, pages that nobody had asked for yet.
    ahead: int
    #: Pages of zeros that were mapped without asking anybody.
    zeroed: int
    #: Pages that went.
    evicted: int
    #: Of those, pages that were written to the lease.
    stored: int
    #: Of those that went, pages that held zeros, and so were just forgotten.
    emptied: int
    #: Pages that were written to while they were on their way out, and so stayed.
    kept: int
    #: Times that a touch had to wait for room.
    waits: int
    #: Times that connections were made anew.
    mended: int
    #: Seconds that half of all faults took no longer than.
    fault_p50: float
    #: The same of 99 in 100.
    fault_p99: float


class Region(Handle):
    """A lease as memory, which begins as zeros: `Lease.region` makes one. Any number of threads may use it at once.

    It lives as long as anything in it does: an array, a view of one, a memoryview. Once the last is gone, and nobody has the
    region itself, it ends, and the lease with it. `with` ends it sooner: at its end, or with the last array where one is left.

    A page that cannot be had any more, because the lease or its provider is gone, ends the program with SIGBUS where it is
    touched, after a line on standard error that says why. A process that was forked from this one does not have the memory:
    touching it there ends in SIGSEGV.
    """

    _kind = "region"

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self._ending = False
        # What is in use, by number: adding and taking away is one step each, whatever thread does it.
        self._uses: Set[int] = set()
        start, size = c_void_p(), c_size_t()
        call("overbank_region_memory", value, byref(start), byref(size))
        self._start, self._size = start.value or 0, size.value

    @property
    def lease_id(self) -> str:
        """The lease that it is kept in."""
        place = create_string_buffer(_library.LEASE_ID_LEN)
        call("overbank_region_lease_id", self._open(), place, len(place))
        return place.value.decode()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def __len__(self) -> int:
        return self._size

    def stats(self) -> Stats:
        """What it has done so far, and how much of it is here."""
        place = _library.Stats(size=sizeof(_library.Stats))
        call("overbank_region_stats", self._open(), byref(place))
        found: Dict[str, Any] = {name: getattr(place, name) for name in Stats._fields if hasattr(place, name)}
        return Stats(**found, fault_p50=place.fault_p50_ns / 1e9, fault_p99=place.fault_p99_ns / 1e9)

    def check(self) -> None:
        """Raises LeaseLostError where pages cannot be had any more, so that touching one that is not here would end the program.
        Asks nobody: a loss shows once somebody needed a page, or the lease could not be renewed."""
        call("overbank_region_check", self._open())

    def array(
        self, shape: Union[int, Sequence[int]], dtype: Any = float, *, offset: int = 0, order: Literal["C", "F"] = "C"
    ) -> "np.ndarray[Any, Any]":
        """A numpy array in this memory, from the byte `offset` on. Several may lie in the same bytes."""
        import numpy as np

        kind: "np.dtype[Any]" = np.dtype(dtype)
        if kind.hasobject or kind.itemsize == 0:
            raise UsageError(f"elements of {kind} cannot leave this process")
        if order not in ("C", "F"):
            raise UsageError(f"the order is 'C' or 'F', not {order!r}")
        lengths = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        if any(length < 0 for length in lengths) or offset < 0:
            raise UsageError(f"there is no array of the shape {shape} at {offset}")
        if offset + math.prod(map(int, lengths)) * kind.itemsize > self._size:
            raise DoesNotFitError(f"an array of {kind} of the shape {shape} at {offset} does not fit into {self._size} bytes")
        whole = np.asarray(_Pages(self))
        return np.ndarray(lengths, kind, whole, offset, order=order)

    def bytes_of(self, array: "np.ndarray[Any, Any]") -> range:
        """Which bytes of the region an array in it spans, for `hold` and its like."""
        first = end = array.__array_interface__["data"][0] - self._start
        if not array.size:
            # It may begin anywhere, also where nothing is.
            return range(0)
        for length, stride in zip(array.shape, array.strides):
            first += min(0, (length - 1) * stride)
            end += max(0, (length - 1) * stride)
        end += array.itemsize
        if not 0 <= first <= end <= self._size:
            raise UsageError("this array is not in this region: overbank.region_of finds its own")
        return range(first, end)

    def fetch(self, reach: Optional[range] = None) -> None:
        """Brings all pages that have one of these bytes, by default all; where they are more than may be here, some go again.
        Raises LeaseLostError in place of ending the program."""
        call("overbank_region_fetch", self._open(), *self._reach(reach))

    def hold(self, reach: Optional[range] = None) -> None:
        """Brings all pages that have one of these bytes, and keeps them here until `unhold`: for system calls, such as
        `file.readinto(array)`, where faults are handled by signal. A page is held or not, however often it was asked for. Where
        too little of the local memory would be left for the others, it raises DoesNotFitError and holds none more."""
        call("overbank_region_hold", self._open(), *self._reach(reach))

    def unhold(self, reach: Optional[range] = None) -> None:
        """Lets all pages go again that have one of these bytes."""
        call("overbank_region_unhold", self._open(), *self._reach(reach))

    def discard(self, reach: Optional[range] = None) -> int:
        """Makes zeros of the pages that lie with all of their bytes in these, and forgets what they held; returns how many bytes
        that were."""
        zeroed = c_uint64()
        call("overbank_region_discard", self._open(), *self._reach(reach), byref(zeroed))
        return zeroed.value

    def _reach(self, reach: Optional[range]) -> Tuple[int, int]:
        if reach is None:
            return 0, self._size
        if reach.step != 1 or not 0 <= reach.start <= reach.stop < 2**63:
            raise UsageError(f"{reach} is no range of bytes")
        return reach.start, reach.stop - reach.start

    def release(self, patience: float = 2.0) -> bool:
        """Ends the region and its lease now; what was in it is gone. Raises BusyError while an array in it is in use, or another
        thread is in a call with it. Waits at most `patience` seconds longer for the provider's signed word that the memory is
        overwritten; returns whether it came."""
        value, self._value = self._open(), None
        # From here on no array is made; one that was is seen.
        if self._uses:
            self._value = value
            raise BusyError("an array in this region is in use: let go of it and of its views first, or use `with`")
        return self._unmap(value, 0 if patience <= 0 else milliseconds(patience, "patience"))

    def _unmap(self, value: int, patience_ms: int) -> bool:
        wiped = c_bool()
        try:
            call("overbank_region_release", value, patience_ms, byref(wiped))
        except BusyError:
            self._value = value
            raise
        return wiped.value

    def _end_quietly(self) -> None:
        """Where nobody is left to be told. In a forked child the library knows of no region, and nothing ends."""
        value, self._value = getattr(self, "_value", None), None
        if value is not None:
            try:
                self._unmap(value, 0)
            except Exception:
                pass

    def _unused(self, pages: int) -> None:
        self._uses.discard(pages)
        if self._ending and not self._uses:
            self._end_quietly()

    def __enter__(self) -> "Region":
        self._open()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._ending = True
        if not self.closed and not self._uses:
            self.release()

    def __del__(self) -> None:
        self._end_quietly()


class _Pages:
    """What an array in a region stands on: as long as it is there, the region is."""

    def __init__(self, region: Region) -> None:
        region._uses.add(id(self))
        self.region = region
        region._open()
        if region._ending:
            raise ClosedError("this region has ended: make another")
        self.__array_interface__ = {
            "shape": (region.size,),
            "typestr": "|u1",
            "data": (region._start, False),
            "version": 3,
        }

    def __del__(self) -> None:
        self.region._unused(id(self))
