"""A lease: memory on another machine, read and written at any offset."""

import enum
import os
import sys
import warnings
from contextlib import contextmanager
from ctypes import byref, c_bool, c_char, c_uint32, c_uint64, c_void_p, create_string_buffer, pointer, sizeof
from types import TracebackType
from typing import TYPE_CHECKING, Any, Iterator, List, Optional, Type, Union

from . import _library
from ._library import Handle, call, milliseconds, text
from .errors import Error, UsageError
from .region import Faults, Region

if TYPE_CHECKING and sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    Buffer = Any


class OnUnknown(enum.IntEnum):
    """What to do with a block of which nobody knows what was written to it last."""

    #: Refuse it where a process that wrote it was killed, take it where the lease is shared.
    DEFAULT = 0
    #: Refuse it, whatever is in it.
    REFUSE = 1
    #: Take what was sealed for it, which may be older than what was written last; refuse an empty one.
    ACCEPT_SEALED = 2
    #: The same, and take an empty one for one that was never written.
    ACCEPT = 3


class _Transfers(Handle):
    """What can be read and written."""

    _read = ""
    _write = ""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on. Those that were never written are zeros."""
        _check(offset, length)
        buffer = bytearray(length)
        self._readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: "Buffer") -> int:
        """Fills `buffer` (a bytearray, a numpy array, anything that can be written and lies in one piece) with the bytes from
        `offset` on; returns how many. Where it fails the buffer holds zeros."""
        view = _view(buffer)
        if view.readonly:
            raise UsageError("the buffer cannot be written: give a bytearray or another one that can")
        _check(offset, view.nbytes)
        self._readinto(offset, view)
        return view.nbytes

    def _readinto(self, offset: int, view: memoryview) -> None:
        place = (c_char * view.nbytes).from_buffer(view) if view.nbytes else None
        call(self._read, self._open(), offset, place, view.nbytes)

    def write(self, offset: int, data: "Buffer") -> int:
        """Writes all bytes of `data` from `offset` on; returns how many. When it returns they are in the provider's memory;
        where it fails, some may be."""
        view = _view(data)
        _check(offset, view.nbytes)
        place: Any = None
        if isinstance(data, bytes):
            place = data
        elif view.nbytes:
            # ctypes takes no address of what it may not write: then one copy more.
            place = bytes(view) if view.readonly else (c_char * view.nbytes).from_buffer(view)
        call(self._write, self._open(), offset, place, view.nbytes)
        return view.nbytes


class Lane(_Transfers):
    """One of the lanes of a lease that was split: for one thread at a time, while others use other lanes."""

    _kind = "lane"
    _read = "overbank_lane_read"
    _write = "overbank_lane_write"

    def close(self) -> None:
        """Gives it back. With the last one the lease is whole again."""
        if not self.closed:
            self._end("overbank_lane_close")


class Lease(_Transfers):
    """Memory on another machine, for one thread at a time. `with` closes it: what was written last is saved, and the memory
    stays leased until `release`, or until its time is over."""

    _kind = "lease"
    _read = "overbank_lease_read"
    _write = "overbank_lease_write"

    @property
    def id(self) -> str:
        """Which lease it is; `Client.open` takes it up again by this."""
        place = create_string_buffer(_library.LEASE_ID_LEN)
        call("overbank_lease_id", self._open(), place, len(place))
        return place.value.decode()

    @property
    def size(self) -> int:
        """Usable bytes."""
        size = c_uint64()
        call("overbank_lease_bytes", self._open(), byref(size))
        return size.value

    def __len__(self) -> int:
        return self.size

    @property
    def block(self) -> int:
        """Bytes of a block."""
        block = c_uint32()
        call("overbank_lease_block", self._open(), byref(block))
        return block.value

    @property
    def reach(self) -> range:
        """Its bytes that can be reached: all of them, unless it was shared with us."""
        first, end = c_uint64(), c_uint64()
        call("overbank_lease_reach", self._open(), byref(first), byref(end))
        return range(first.value, end.value)

    @property
    def read_only(self) -> bool:
        """Whether it was shared with us for reading only."""
        return self._is("overbank_lease_read_only")

    @property
    def freshness_is_known(self) -> bool:
        """Whether it is known of every block what was written to it last, so that no older content can pass for it."""
        return self._is("overbank_lease_freshness_is_known")

    def _is(self, function: str) -> bool:
        place = c_bool()
        call(function, self._open(), byref(place))
        return place.value

    @property
    def time_left(self) -> float:
        """Seconds that it can be used."""
        left = c_uint64()
        call("overbank_lease_time_left_ms", self._open(), byref(left))
        return left.value / 1000

    def attach(
        self,
        device: Optional[str] = None,
        *,
        address: Optional[str] = None,
        lanes: int = 1,
        on_unknown: OnUnknown = OnUnknown.DEFAULT,
        spin: Optional[float] = None,
        deadline: Optional[float] = None,
    ) -> None:
        """Connects to the provider. A read or a write does this by itself, with the default options.

        device: "auto" (the default), "soft", or the name of an RDMA device.
        address: ours, as the provider is to see it.
        lanes: for how many threads at once, see `split`.
        on_unknown: what to do with a block of which nobody knows what was written to it last.
        spin: seconds to spin for a completion before sleeping for it; by default 50e-6.
        deadline: seconds that a read or a write may take; by default 10.
        """
        if not 0 < lanes < 2**32:
            raise UsageError(f"a lease cannot have {lanes} lanes")
        options = _attach_options(device, address, spin, deadline)
        options.lanes, options.on_unknown = lanes, int(on_unknown)
        call("overbank_lease_attach", self._open(), byref(options))

    def region(
        self,
        local: int,
        *,
        page: Optional[int] = None,
        faults: Faults = Faults.SIGNAL,
        ahead: Optional[int] = None,
        fetchers: Optional[int] = None,
        patience: Optional[float] = None,
        renew_to: Optional[float] = None,
        device: Optional[str] = None,
        address: Optional[str] = None,
        spin: Optional[float] = None,
        deadline: Optional[float] = None,
    ) -> Region:
        """Makes memory of the lease, which belongs to the region then: this is closed. Where it fails the lease stays, and is not
        attached. What was in it counts for nothing.

        local: bytes that may be in this machine's memory, 32 pages at least.
        page: bytes that come and go together: a power of two up to 2 MiB, no less than the lease's block, which is the default.
        faults: who brings a page that is touched and not here.
        ahead: bytes that are fetched ahead of a stream of touches; by default 256 KiB, 0 for none.
        fetchers: how many pages can be fetched at the same moment; by default 2.
        patience: seconds that a page may take, with all that is to be mended meanwhile, before it is given up; by default 30.
        renew_to: to how many seconds the lease is renewed as long as the region lives; by default what is left of it.
        device, address, spin, deadline: as `attach` takes them.
        """
        if not (0 <= local < 2**64 and 0 <= (ahead or 0) < 2**64):
            raise UsageError(f"nobody keeps {local} bytes here, and fetches {ahead} ahead")
        for what, number in (("page", page), ("fetchers", fetchers)):
            if number is not None and not 0 < number < 2**32:
                raise UsageError(f"{what} is {number}")
        attach = _attach_options(device, address, spin, deadline)
        options = _library.RegionOptions(
            size=sizeof(_library.RegionOptions),
            local_bytes=local,
            page=page or 0,
            faults=int(faults),
            # Less than a page is none; 0 is the library's own default.
            ahead_bytes=0 if ahead is None else max(1, ahead),
            fetchers=fetchers or 0,
            patience_ms=milliseconds(patience, "patience"),
            renew_to_ms=milliseconds(renew_to, "renew_to"),
            attach=pointer(attach),
        )
        place = c_void_p()
        call("overbank_region_open", self._open(), byref(options), byref(place))
        self._value = None
        return Region(place.value or 0)

    @contextmanager
    def split(self, lanes: int) -> Iterator[List[Lane]]:
        """The lanes that `attach` was told of, each for a thread of its own, until the end of `with`. The lease itself is busy
        meanwhile.

            lease.attach(lanes=4)
            with lease.split(4) as lanes, ThreadPoolExecutor() as pool:
                list(pool.map(lambda at: lanes[at].write(at * part, data[at]), range(4)))
        """
        if not 0 < lanes < 2**16:
            raise UsageError(f"a lease cannot have {lanes} lanes")
        places = (c_void_p * lanes)()
        call("overbank_lease_split", self._open(), places, lanes)
        made = [Lane(place or 0) for place in places]
        try:
            yield made
        finally:
            failed: Optional[BaseException] = None
            for lane in made:
                try:
                    lane.close()
                except Error as error:
                    failed = failed or error
            if failed is not None:
                raise failed

    def renew(self, ttl: float) -> float:
        """Moves the end to `ttl` seconds from now; never sooner. Returns the seconds that it can be used from now on."""
        left = c_uint64()
        call("overbank_lease_renew", self._open(), milliseconds(ttl, "ttl"), byref(left))
        return left.value / 1000

    def share(
        self,
        to: str,
        path: Union[str, "os.PathLike[str]"],
        *,
        reach: Optional[range] = None,
        read_only: bool = False,
        ttl: Optional[float] = None,
    ) -> None:
        """Shares it with the identity of the fingerprint `to`: writes a bundle to the file `path`, of use to that identity
        alone. `reach`: which bytes, of whole blocks; by default all. `ttl`: for how many seconds; by default as long as the
        lease lasts by now."""
        if reach is not None and (reach.step != 1 or not 0 <= reach.start < reach.stop < 2**64):
            raise UsageError(f"{reach} is no range of bytes")
        options = _library.ShareOptions(
            size=sizeof(_library.ShareOptions),
            first=reach.start if reach is not None else 0,
            end=reach.stop if reach is not None else 0,
            ttl_ms=milliseconds(ttl, "ttl"),
            read_only=1 if read_only else 0,
        )
        call("overbank_lease_share", self._open(), text(to), byref(options), text(path))

    def close(self) -> None:
        """Ends the use of the lease, not the lease: what was written last is saved, for who opens it next."""
        if not self.closed:
            self._end("overbank_lease_close")

    def release(self, patience: float = 2.0) -> bool:
        """Ends the lease now: nothing reaches its memory any more. Waits at most `patience` seconds longer for the provider's
        signed word that the memory is overwritten; returns whether it came."""
        wiped = c_bool()
        self._end("overbank_lease_release", 0 if patience <= 0 else milliseconds(patience, "patience"), byref(wiped))
        return wiped.value

    def __enter__(self) -> "Lease":
        self._open()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_value", None) is not None:
            warnings.warn("a lease was not closed", ResourceWarning, source=self, stacklevel=2)
            try:
                self.close()
            except Exception:
                pass


def _attach_options(
    device: Optional[str], address: Optional[str], spin: Optional[float], deadline: Optional[float]
) -> "_library.AttachOptions":
    if spin is not None and not 0 < spin < 3600:
        raise UsageError(f"nobody spins for {spin} s")
    return _library.AttachOptions(
        size=sizeof(_library.AttachOptions),
        device=text(device),
        address=text(address),
        spin_ns=0 if spin is None else max(1, round(spin * 1e9)),
        deadline_ms=milliseconds(deadline, "deadline"),
    )


def _check(offset: int, length: int) -> None:
    if not (0 <= offset < 2**64 and 0 <= length < 2**63):
        raise UsageError(f"there are no {length} bytes at offset {offset}")


def _view(buffer: "Buffer") -> memoryview:
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise UsageError("the buffer does not lie in one piece: copy it first")
    return view
