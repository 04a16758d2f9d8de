"""A numpy array in a lease, which several ranks have: each writes rows of its own."""

import os
from types import TracebackType
from typing import Any, Iterator, Optional, Sequence, Tuple, Type, Union

import numpy as np

from .client import Client
from .errors import UsageError
from .lease import Lease

#: Which rows: one, or some that lie side by side.
Rows = Union[int, slice, range]


class Layout:
    """Where the rows of an array lie in a lease. All ranks make the same one.

    The array comes in `parts` as even as can be. Each begins on a block of its own, so that ranks that write different parts
    never write the same block, which would lose what one of them wrote.

    shape: of the array; its first axis are the rows.
    dtype: of its elements, whatever numpy takes but objects.
    parts: how many ranks have rows of their own.
    block: the bytes of the lease's blocks.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, parts: int = 1, block: int = 4096) -> None:
        self.shape: Tuple[int, ...] = tuple(int(length) for length in shape)
        self.dtype: "np.dtype[Any]" = np.dtype(dtype)
        self.parts, self.block = int(parts), int(block)
        if not self.shape or min(self.shape) < 1:
            raise UsageError(f"an array of the shape {self.shape} has no rows to share")
        if self.dtype.hasobject or self.dtype.itemsize == 0:
            raise UsageError(f"elements of {self.dtype} cannot leave this process")
        if not 1 <= self.parts <= self.shape[0]:
            raise UsageError(f"{self.shape[0]} rows cannot be in {self.parts} parts")
        if self.block < 1:
            raise UsageError(f"there are no blocks of {self.block} bytes")
        self.row_nbytes: int = self.dtype.itemsize
        for length in self.shape[1:]:
            self.row_nbytes *= length
        most = -(-self.shape[0] // self.parts)
        #: Bytes from one part to the next.
        self.stride: int = -(-most * self.row_nbytes // self.block) * self.block

    @property
    def nbytes(self) -> int:
        """Bytes that the lease must have."""
        return self.parts * self.stride

    def rows(self, part: int) -> range:
        """The rows of a part."""
        self._check(part)
        rows = self.shape[0]
        return range(rows * part // self.parts, rows * (part + 1) // self.parts)

    def reach(self, part: int) -> range:
        """The bytes of a part, in whole blocks."""
        self._check(part)
        return range(part * self.stride, (part + 1) * self.stride)

    def part_of(self, row: int) -> int:
        """The part that a row is in."""
        if not 0 <= row < self.shape[0]:
            raise UsageError(f"there is no row {row}")
        return ((row + 1) * self.parts - 1) // self.shape[0]

    def pieces(self, rows: range) -> Iterator[Tuple[range, int]]:
        """Rows side by side as they lie in the lease: pieces, each with the offset of its first byte."""
        at = rows.start
        while at < rows.stop:
            part = self.part_of(at)
            own = self.rows(part)
            end = min(own.stop, rows.stop)
            yield range(at, end), part * self.stride + (at - own.start) * self.row_nbytes
            at = end

    def _check(self, part: int) -> None:
        if not 0 <= part < self.parts:
            raise UsageError(f"there is no part {part}: they are 0 to {self.parts - 1}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        mine = (self.shape, self.dtype, self.parts, self.block)
        return mine == (other.shape, other.dtype, other.parts, other.block)

    def __hash__(self) -> int:
        return hash((self.shape, self.dtype, self.parts, self.block))

    def __repr__(self) -> str:
        return f"Layout({self.shape}, {self.dtype.str!r}, parts={self.parts}, block={self.block})"


class SharedArray:
    """An array in a lease: `array[rows]` reads rows into a new numpy array, `array[rows] = values` writes them. What one rank
    wrote another reads as soon as the write returned; when to read is for the ranks to agree.

    Rows are one (`array[7]`), or some side by side (`array[2:9]`, `array[array.rows]`). For one thread at a time, as its lease.

    lease: must have `layout.nbytes` bytes, and blocks of the layout's size.
    part: of which part this rank may write the rows; None: of all parts that the lease reaches.
    """

    def __init__(self, lease: Lease, layout: Layout, part: Optional[int] = None) -> None:
        if lease.size < layout.nbytes:
            raise UsageError(f"the lease has {lease.size} bytes, and {layout!r} needs {layout.nbytes}")
        if layout.block % lease.block != 0:
            raise UsageError(f"the lease has blocks of {lease.block} bytes: make the layout with block={lease.block}")
        self.lease, self.layout, self.part = lease, layout, part
        reach = lease.reach
        parts = [at for at in range(layout.parts) if _within(layout.reach(at), reach)] if part is None else [part]
        self._own = range(layout.rows(parts[0]).start, layout.rows(parts[-1]).stop) if parts else range(0)

    @classmethod
    def open(
        cls,
        client: Client,
        bundle: Union[bytes, str, "os.PathLike[str]"],
        layout: Layout,
        part: Optional[int] = None,
        *,
        sender: Optional[str] = None,
    ) -> "SharedArray":
        """Opens an array, or a part of it, that somebody shared with this identity: see `Client.open_share`."""
        lease = client.open_share(bundle, sender=sender)
        try:
            return cls(lease, layout, part)
        except BaseException:
            lease.close()
            raise

    def share(
        self,
        part: int,
        to: str,
        path: Union[str, "os.PathLike[str]"],
        *,
        whole: bool = False,
        read_only: bool = False,
        ttl: Optional[float] = None,
    ) -> None:
        """Shares a part with the identity of the fingerprint `to`, by a bundle in the file `path`. With `whole` it gets all of
        the array, so that it can read every row; it is to write `part` alone then."""
        reach = self.layout.reach(part)
        if whole:
            reach = range(0, self.layout.nbytes)
        self.lease.share(to, path, reach=reach, read_only=read_only, ttl=ttl)

    @property
    def shape(self) -> Tuple[int, ...]:
        """Of the whole array."""
        return self.layout.shape

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Of its elements."""
        return self.layout.dtype

    @property
    def rows(self) -> range:
        """The rows that this rank may write: those of its part, else those of all parts that its lease reaches."""
        return self._own

    def __len__(self) -> int:
        return self.layout.shape[0]

    def __getitem__(self, rows: Rows) -> "np.ndarray[Any, Any]":
        wanted = self._rows(rows)
        found = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        self.readinto(wanted, found)
        return found[0] if isinstance(rows, (int, np.integer)) else found

    def readinto(self, rows: Rows, out: "np.ndarray[Any, Any]") -> None:
        """Reads rows into an array of the right shape and type that lies in one piece."""
        wanted = self._rows(rows)
        if out.dtype != self.dtype or out.shape != (len(wanted), *self.shape[1:]):
            raise UsageError(f"{len(wanted)} rows do not go into an array of {out.dtype} of the shape {out.shape}")
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise UsageError("the array cannot be written in one piece: copy it")
        for piece, offset in self.layout.pieces(wanted):
            part = out[piece.start - wanted.start : piece.stop - wanted.start]
            self.lease.readinto(offset, part.reshape(-1).view(np.uint8))

    def __setitem__(self, rows: Rows, values: Any) -> None:
        wanted = self._rows(rows)
        if not _within(wanted, self._own):
            raise UsageError(
                f"rows {wanted.start} to {wanted.stop - 1} are not all in {self._own.start} to {self._own.stop - 1}, which this "
                "rank may write"
            )
        shape = (len(wanted), *self.shape[1:])
        if isinstance(rows, (int, np.integer)):
            values = np.broadcast_to(np.asarray(values, self.dtype), shape[1:])[np.newaxis]
        given = np.ascontiguousarray(np.broadcast_to(np.asarray(values, self.dtype), shape))
        for piece, offset in self.layout.pieces(wanted):
            part = given[piece.start - wanted.start : piece.stop - wanted.start]
            self.lease.write(offset, part.reshape(-1).view(np.uint8))

    def _rows(self, rows: Rows) -> range:
        """What is asked for, as numbers from 0 up."""
        count = self.shape[0]
        if isinstance(rows, (int, np.integer)):
            row = int(rows) + (count if rows < 0 else 0)
            if not 0 <= row < count:
                raise IndexError(f"there is no row {rows} among {count}")
            return range(row, row + 1)
        if isinstance(rows, range):
            if len(rows) and not 0 <= rows.start < rows.stop <= count:
                raise IndexError(f"there are no rows {rows.start} to {rows.stop - 1} among {count}")
            rows = slice(rows.start, rows.stop, rows.step)
        if not isinstance(rows, slice):
            raise TypeError(f"rows are a number, or some side by side (2:9), not {rows!r}: index what comes back for the rest")
        wanted = range(*rows.indices(count))
        if wanted.step != 1:
            raise UsageError("rows must lie side by side: read them all, and take every so-manieth of what comes back")
        return wanted if len(wanted) else range(wanted.start, wanted.start)

    def close(self) -> None:
        """Ends the use of the lease, not the lease."""
        self.lease.close()

    def __enter__(self) -> "SharedArray":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        own = "" if self.part is None else f", part {self.part}"
        return f"<overbank array of {self.dtype} {self.shape}{own}>"


def _within(inner: range, outer: range) -> bool:
    return not len(inner) or (outer.start <= inner.start and inner.stop <= outer.stop)
