"""liboverbank.so through ctypes: its structs, its functions, and its statuses as exceptions."""

import ctypes
import os
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, Dict, List, Optional

from . import errors

#: What the shared library of this version is called.
SONAME = "liboverbank.so.0.1"

FINGERPRINT_LEN = 41
LEASE_ID_LEN = 33


class Config(ctypes.Structure):
    """overbank_config"""

    _fields_ = [
        ("size", c_size_t),
        ("authd", c_char_p),
        ("home", c_char_p),
        ("leases", c_char_p),
        ("authd_fingerprint", c_char_p),
        ("deadline_ms", c_uint64),
    ]


class AttachOptions(ctypes.Structure):
    """overbank_attach_options"""

    _fields_ = [
        ("size", c_size_t),
        ("device", c_char_p),
        ("address", c_char_p),
        ("on_unknown", c_uint32),
        ("lanes", c_uint32),
        ("spin_ns", c_uint64),
        ("deadline_ms", c_uint64),
    ]


class ShareOptions(ctypes.Structure):
    """overbank_share_options"""

    _fields_ = [
        ("size", c_size_t),
        ("first", c_uint64),
        ("end", c_uint64),
        ("ttl_ms", c_uint64),
        ("read_only", c_uint32),
        ("reserved", c_uint32),
    ]


class RegionOptions(ctypes.Structure):
    """overbank_region_options"""

    _fields_ = [
        ("size", c_size_t),
        ("local_bytes", c_uint64),
        ("page", c_uint32),
        ("faults", c_uint32),
        ("ahead_bytes", c_uint64),
        ("fetchers", c_uint32),
        ("reserved", c_uint32),
        ("patience_ms", c_uint64),
        ("renew_to_ms", c_uint64),
        ("attach", POINTER(AttachOptions)),
    ]


class Stats(ctypes.Structure):
    """overbank_stats"""

    _fields_ = [
        ("size", c_size_t),
        ("bytes", c_uint64),
        ("page_bytes", c_uint64),
        ("local_bytes", c_uint64),
        ("resident_bytes", c_uint64),
        ("peak_resident_bytes", c_uint64),
        ("faults", c_uint64),
        ("write_faults", c_uint64),
        ("fetched", c_uint64),
        ("ahead", c_uint64),
        ("zeroed", c_uint64),
        ("evicted", c_uint64),
        ("stored", c_uint64),
        ("emptied", c_uint64),
        ("kept", c_uint64),
        ("waits", c_uint64),
        ("mended", c_uint64),
        ("fault_p50_ns", c_uint64),
        ("fault_p99_ns", c_uint64),
    ]


_HANDLE = c_void_p
_OUT = POINTER(c_void_p)

#: The arguments of every function that returns a status.
FUNCTIONS: Dict[str, List[Any]] = {
    "overbank_connect": [POINTER(Config), _OUT],
    "overbank_client_fingerprint": [_HANDLE, c_char_p, c_size_t],
    "overbank_client_authd": [_HANDLE, c_char_p, c_size_t, POINTER(c_bool)],
    "overbank_client_close": [_HANDLE],
    "overbank_lease_create": [_HANDLE, c_uint64, c_uint64, c_uint32, _OUT],
    "overbank_lease_open": [_HANDLE, c_char_p, _OUT],
    "overbank_lease_attach": [_HANDLE, POINTER(AttachOptions)],
    "overbank_lease_read": [_HANDLE, c_uint64, c_void_p, c_size_t],
    "overbank_lease_write": [_HANDLE, c_uint64, c_void_p, c_size_t],
    "overbank_lease_renew": [_HANDLE, c_uint64, POINTER(c_uint64)],
    "overbank_lease_bytes": [_HANDLE, POINTER(c_uint64)],
    "overbank_lease_block": [_HANDLE, POINTER(c_uint32)],
    "overbank_lease_reach": [_HANDLE, POINTER(c_uint64), POINTER(c_uint64)],
    "overbank_lease_read_only": [_HANDLE, POINTER(c_bool)],
    "overbank_lease_id": [_HANDLE, c_char_p, c_size_t],
    "overbank_lease_time_left_ms": [_HANDLE, POINTER(c_uint64)],
    "overbank_lease_freshness_is_known": [_HANDLE, POINTER(c_bool)],
    "overbank_lease_close": [_HANDLE],
    "overbank_lease_release": [_HANDLE, c_uint64, POINTER(c_bool)],
    "overbank_lease_split": [_HANDLE, _OUT, c_size_t],
    "overbank_lane_read": [_HANDLE, c_uint64, c_void_p, c_size_t],
    "overbank_lane_write": [_HANDLE, c_uint64, c_void_p, c_size_t],
    "overbank_lane_close": [_HANDLE],
    "overbank_lease_share": [_HANDLE, c_char_p, POINTER(ShareOptions), c_char_p],
    "overbank_share_open": [_HANDLE, c_void_p, c_size_t, c_char_p, _OUT],
    "overbank_share_open_file": [_HANDLE, c_char_p, c_char_p, _OUT],
    "overbank_region_open": [_HANDLE, POINTER(RegionOptions), _OUT],
    "overbank_region_memory": [_HANDLE, _OUT, POINTER(c_size_t)],
    "overbank_region_lease_id": [_HANDLE, c_char_p, c_size_t],
    "overbank_region_stats": [_HANDLE, POINTER(Stats)],
    "overbank_region_check": [_HANDLE],
    "overbank_region_fetch": [_HANDLE, c_uint64, c_size_t],
    "overbank_region_hold": [_HANDLE, c_uint64, c_size_t],
    "overbank_region_unhold": [_HANDLE, c_uint64, c_size_t],
    "overbank_region_discard": [_HANDLE, c_uint64, c_size_t, POINTER(c_uint64)],
    "overbank_region_release": [_HANDLE, c_uint64, POINTER(c_bool)],
}


def _load() -> ctypes.CDLL:
    name = os.environ.get("OVERBANK_LIBRARY") or SONAME
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise ImportError(
            f"cannot load {name}: {error}. Install it (scripts/install-c --prefix DIR) and set LD_LIBRARY_PATH to DIR/lib, "
            "or OVERBANK_LIBRARY to the file"
        ) from error
    for function, arguments in FUNCTIONS.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = c_int
    for function in ("overbank_last_error", "overbank_version"):
        getattr(library, function).argtypes = []
        getattr(library, function).restype = c_char_p
    library.overbank_strerror.argtypes = [c_int]
    library.overbank_strerror.restype = c_char_p
    return library


_library = _load()


def call(function: str, *arguments: Any) -> None:
    """Calls a function that returns a status; raises the error that it is. Other threads run meanwhile."""
    status = getattr(_library, function)(*arguments)
    if status != 0:
        raise errors.of(status, _library.overbank_last_error().decode(errors="replace"))


def version() -> str:
    """The library's version, such as "0.1.0"."""
    text: bytes = _library.overbank_version()
    return text.decode()


def text(value: Optional[Any]) -> Optional[bytes]:
    """A text or a path as C takes it; None is left out."""
    if value is None:
        return None
    encoded = os.fsencode(value)
    if b"\0" in encoded:
        raise errors.UsageError(f"{value!r} has a zero byte inside")
    return encoded


def milliseconds(seconds: Optional[float], what: str) -> int:
    """Seconds as C takes them: at least one millisecond; None is 0, which leaves it out."""
    if seconds is None:
        return 0
    if not 0 < seconds < 2**53 / 1000:
        raise errors.UsageError(f"{what} is {seconds} s: it must be longer than nothing")
    return max(1, round(seconds * 1000))


class Handle:
    """Something of the library's that is open until it is closed. Closing it twice does nothing."""

    _kind = ""

    def __init__(self, value: int) -> None:
        self._value: Optional[int] = value

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._value is None

    def _open(self) -> int:
        if self._value is None:
            raise errors.ClosedError(f"this {self._kind} was closed: open another")
        return self._value

    def _end(self, function: str, *arguments: Any) -> None:
        """Calls a function after which the handle is none, unless somebody else is in a call with it."""
        value, self._value = self._open(), None
        try:
            call(function, value, *arguments)
        except errors.BusyError:
            self._value = value
            raise

    def __repr__(self) -> str:
        return f"<overbank {self._kind}{' (closed)' if self.closed else ''}>"
