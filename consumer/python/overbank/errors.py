"""What can go wrong: a class for each status of the C library."""

from typing import Dict, Type


class Error(Exception):
    """Anything that Overbank could not do. Its text has the thing, the cause and the way out."""

    #: The status of the C library that it stands for.
    status = 1


class UsageError(Error, ValueError):
    """The call makes no sense: a length, an option, or a request that nobody could do."""

    status = 2


class AuthdUnreachableError(Error, ConnectionError):
    """The auth daemon cannot be reached."""

    status = 3


class NotTrustedError(Error, PermissionError):
    """This identity is not trusted, or not for this."""

    status = 4


class AuthdKeyChangedError(Error):
    """The auth daemon has another key than it had."""

    status = 5


class NoRoomError(Error, MemoryError):
    """The pool is full or the quota used up."""

    status = 6


class LeaseOverError(Error):
    """The lease is over: expired, released, revoked, or there is none."""

    status = 7


class LeaseLostError(Error):
    """The lease is lost: its provider died or is away."""

    status = 8


class ContentsError(Error):
    """What was in the lease did not come back as it was written."""

    status = 9


class DoesNotFitError(Error, IndexError):
    """More bytes than the lease has there."""

    status = 10


class DeadlineError(Error, TimeoutError):
    """Not done in time. It may have been done all the same."""

    status = 11


class LocalError(Error, OSError):
    """A local file: the key, the pins or the lease's file is missing, damaged, in use or open to others."""

    status = 12


class DeviceError(Error):
    """This machine's RDMA device has failed, is down or cannot be used."""

    status = 13


class ProposedError(Error):
    """Not done yet: it waits for more operators' approval."""

    status = 14


class BusyError(Error):
    """Another thread is in a call with this lease, lane or region, the lease is split, or an array in the region is in use.
    Nothing was done."""

    status = 100


class ClosedError(Error, ValueError):
    """The client, lease, lane or region was closed. Nothing was done."""

    status = 101


class PanicError(Error):
    """A fault of the library itself. Close what the call was made with."""

    status = 102


def _classes() -> Dict[int, Type[Error]]:
    found = {Error.status: Error}
    for kind in Error.__subclasses__():
        found[kind.status] = kind
    return found


#: The class for each status.
BY_STATUS = _classes()


def of(status: int, text: str) -> Error:
    """The error that a status is. One of a newer library is an `Error`."""
    error = BY_STATUS.get(status, Error)(text)
    if error.status != status:
        error.status = status
    return error
