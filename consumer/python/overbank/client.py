"""A session with the auth daemon."""

import os
from ctypes import byref, c_bool, c_void_p, create_string_buffer, sizeof
from types import TracebackType
from typing import Optional, Type, Union

from . import _library
from ._library import Handle, call, milliseconds, text
from .errors import UsageError
from .lease import Lease

#: A path, as Python's own functions take it.
Path = Union[str, "os.PathLike[str]"]


def connect(
    authd: Optional[str] = None,
    *,
    home: Optional[Path] = None,
    leases: Optional[Path] = None,
    authd_fingerprint: Optional[str] = None,
    deadline: Optional[float] = None,
) -> "Client":
    """Connects to the auth daemon and proves who both sides are.

    authd: HOST or HOST:PORT; by default OVERBANK_AUTHD, else 127.0.0.1:7471.
    home: the directory of the identity; by default OVERBANK_HOME, else ~/.config/overbank.
    leases: the directory of the lease files, which hold the keys; by default in XDG_RUNTIME_DIR, else in the home.
    authd_fingerprint: of the auth daemon's key, where it came by a way that is trusted.
    deadline: seconds that a request may take; by default 5.
    """
    config = _library.Config(
        size=sizeof(_library.Config),
        authd=text(authd),
        home=text(home),
        leases=text(leases),
        authd_fingerprint=text(authd_fingerprint),
        deadline_ms=milliseconds(deadline, "deadline"),
    )
    client = c_void_p()
    call("overbank_connect", byref(config), byref(client))
    return Client(client.value or 0)


class Client(Handle):
    """A session with the auth daemon, for any number of threads. `connect` makes one, and `with` closes it."""

    _kind = "client"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of this borrower's identity."""
        place = create_string_buffer(_library.FINGERPRINT_LEN)
        call("overbank_client_fingerprint", self._open(), place, len(place))
        return place.value.decode()

    @property
    def authd(self) -> str:
        """The fingerprint of the auth daemon's key."""
        place = create_string_buffer(_library.FINGERPRINT_LEN)
        call("overbank_client_authd", self._open(), place, len(place), None)
        return place.value.decode()

    @property
    def first_contact(self) -> bool:
        """Whether the auth daemon's key was pinned by this connection: people should be shown it then."""
        place, first = create_string_buffer(_library.FINGERPRINT_LEN), c_bool()
        call("overbank_client_authd", self._open(), place, len(place), byref(first))
        return first.value

    def lease(self, size: int, ttl: float, *, block: Optional[int] = None) -> Lease:
        """Leases `size` bytes for `ttl` seconds, in blocks of `block` bytes: 4096 by default, else a power of two from 512 to
        1 MiB. A block is what a write makes anew and a read fetches, however little of it is asked for."""
        if not 0 < size < 2**64 or (block is not None and not 0 < block < 2**32):
            raise UsageError(f"nobody leases {size} bytes in blocks of {block}")
        lease = c_void_p()
        call("overbank_lease_create", self._open(), size, milliseconds(ttl, "ttl"), block or 0, byref(lease))
        return Lease(lease.value or 0)

    def open(self, id: str) -> Lease:
        """Takes a lease into use by its id that this identity made on this machine, or opened from a share."""
        lease = c_void_p()
        call("overbank_lease_open", self._open(), text(id), byref(lease))
        return Lease(lease.value or 0)

    def open_share(self, bundle: Union[bytes, Path], *, sender: Optional[str] = None) -> Lease:
        """Opens what somebody shared with this identity: a bundle's bytes, or the path of its file. `sender` is the
        fingerprint of who is expected to have shared it; by default anybody."""
        lease = c_void_p()
        if isinstance(bundle, (bytes, bytearray)):
            taken = bytes(bundle)
            call("overbank_share_open", self._open(), taken, len(taken), text(sender), byref(lease))
        else:
            call("overbank_share_open_file", self._open(), text(bundle), text(sender), byref(lease))
        return Lease(lease.value or 0)

    def close(self) -> None:
        """Ends the session. Its leases can be used on."""
        if not self.closed:
            self._end("overbank_client_close")

    def __enter__(self) -> "Client":
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
        try:
            self.close()
        except Exception:
            pass
