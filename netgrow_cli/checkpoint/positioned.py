"""Reading and writing at an offset of a file, in full or with an error; never a short count.

`pread` and `pwrite` leave the file position alone, so one descriptor serves several readers.
Where the system lacks them (Windows), a seek stands in.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

# One system call moves less than 2 GiB on Linux, and some other systems refuse more.
_CALL_LIMIT = 1 << 30
_HAS_POSITIONED = hasattr(os, "pread") and hasattr(os, "pwrite")


def _pread(fd: int, count: int, offset: int) -> bytes:
    if _HAS_POSITIONED:
        return os.pread(fd, count, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, count)


def _pwrite(fd: int, data: memoryview, offset: int) -> int:
    if _HAS_POSITIONED:
        return os.pwrite(fd, data, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.write(fd, data)


def open_empty(path: Path) -> FileIO:
    """A file to write, made or emptied.

    One that is empty already, as a staged output is, is not emptied once more: ext4 takes that for a file that is
    being replaced, and waits for the disk when it is closed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    if os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, 0)
    return FileIO(descriptor, "r+")


def read_at(fd: int, offset: int, count: int) -> bytes:
    """`count` bytes from `offset`; EOFError where the file ends before."""
    pieces: list[bytes] = []
    while count > 0:
        piece = _pread(fd, min(count, _CALL_LIMIT), offset)
        if not piece:
            raise EOFError(f"the file ended {count} bytes early")
        pieces.append(piece)
        offset += len(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_into(fd: int, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` (flat bytes) from `offset`; EOFError where the file ends before."""
    done = 0
    while done < len(buffer):
        part = buffer[done : done + _CALL_LIMIT]
        if hasattr(os, "preadv"):
            count = os.preadv(fd, [part], offset + done)
        else:
            piece = _pread(fd, len(part), offset + done)
            count = len(piece)
            part[:count] = piece
        if count == 0:
            raise EOFError(f"the file ended {len(buffer) - done} bytes early")
        done += count


def write_at(fd: int, offset: int, data: bytes | memoryview) -> None:
    """Write all of `data` (flat bytes) at `offset`."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += _pwrite(fd, view[done : done + _CALL_LIMIT], offset + done)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError that names no file the name of `path`: a failed write says only 'no space left'."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
