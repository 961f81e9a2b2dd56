"""A zip archive written front to back, uncompressed and aligned: the container of a torch file.

Python's zipfile cannot align records, and after a failed write it writes once more when it is collected.
Records here are added one at a time, so a checkpoint needs the memory of one tensor.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from netgrow_cli.checkpoint.positioned import naming, open_empty, read_into, write_at
from netgrow_cli.checkpoint.transfer import in_parallel
from netgrow_cli.checkpoint.types import Region
from netgrow_cli.frozen import frozen

# torch maps storages into memory where they lie and wants them aligned.
_ALIGNMENT = 64
_U16 = 0xFFFF
_U32 = 0xFFFFFFFF
_ZIP64_VERSION = 45
_PLAIN_VERSION = 20
_UTF8 = 1 << 11
_DATE = 0x0021  # 1 January 1980, the first that zip knows: the same input gives the same bytes
_PADDING_ID = 0x4246  # the extra field that torch pads with ("FB")
_ZIP64_ID = 1
_CRC_AT = 14  # in a record's header
_BUFFER = 1 << 20


@frozen
class _Record:
    """A record: where its header starts, and where its data does. check: None where it is yet to be computed."""

    name: bytes
    size: int
    check: int | None
    start: int
    data: int


class StoredZip:
    """Add records, then `finish`. Sizes from `zip64_from` on take the 64-bit form (smaller in tests)."""

    def __init__(self, path: Path, *, zip64_from: int = _U32) -> None:
        self._path = path
        self._zip64_from = zip64_from
        self._position = 0
        self._records: list[_Record] = []
        self._file = open_empty(path)

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Write one record."""
        region = self.reserve(name, len(data), zlib.crc32(data))
        with naming(self._path):
            write_at(region.fd, region.start, data)

    def reserve(self, name: str, size: int, check: int | None = None) -> Region:
        """Make room for a record, which whoever asked fills before `finish`.

        check: the CRC-32 of what it will hold; without, it is computed at the end, from what is there then.
        """
        encoded, start = name.encode(), self._position
        self._write(self._local(encoded, size, check or 0))
        self._records.append(_Record(encoded, size, check, start, self._position))
        self._position += size
        return Region(self._file.fileno(), self._records[-1].data, size)

    def finish(self) -> None:
        """Write the directory and close."""
        start = self._position
        checks = in_parallel(self._check, self._records)
        pairs = zip(self._records, checks, strict=True)
        directory = b"".join(self._central(record.name, record.size, check, record.start) for record, check in pairs)
        self._write(directory)
        self._write(self._end(start, len(directory)))
        with naming(self._path):
            self._file.close()

    def _check(self, record: _Record) -> int:
        """A record's CRC, which its own header needs as well where it was not known."""
        if record.check is not None:
            return record.check
        check, buffer = 0, memoryview(bytearray(min(_BUFFER, max(1, record.size))))
        with naming(self._path):
            for done in range(0, record.size, len(buffer)):
                piece = buffer[: min(len(buffer), record.size - done)]
                read_into(self._file.fileno(), record.data + done, piece)
                check = zlib.crc32(piece, check)
            write_at(self._file.fileno(), record.start + _CRC_AT, struct.pack("<I", check))
        return check

    def _write(self, data: bytes | memoryview) -> None:
        with naming(self._path):
            write_at(self._file.fileno(), self._position, data)
        self._position += len(data)

    def _local(self, name: bytes, size: int, check: int) -> bytes:
        large = size >= self._zip64_from
        extra = struct.pack("<HHQQ", _ZIP64_ID, 16, size, size) if large else b""
        before = self._position + 30 + len(name) + len(extra) + 4
        padding = -before % _ALIGNMENT
        extra += struct.pack("<HH", _PADDING_ID, padding) + b"\0" * padding
        shown = _U32 if large else size
        version = _ZIP64_VERSION if large else _PLAIN_VERSION
        about = (version, _UTF8, 0, 0, _DATE, check, shown, shown)
        return struct.pack("<I5H3I2H", 0x04034B50, *about, len(name), len(extra)) + name + extra

    def _central(self, name: bytes, size: int, check: int, start: int) -> bytes:
        large_size, large_start = size >= self._zip64_from, start >= self._zip64_from
        fields = [size, size] * large_size + [start] * large_start
        extra = struct.pack(f"<HH{len(fields)}Q", _ZIP64_ID, 8 * len(fields), *fields) if fields else b""
        version = _ZIP64_VERSION if fields else _PLAIN_VERSION
        shown = _U32 if large_size else size
        about = (version, version, _UTF8, 0, 0, _DATE, check, shown, shown)
        where = (0, 0, 0, 0, _U32 if large_start else start)
        return struct.pack("<I6H3I5H2I", 0x02014B50, *about, len(name), len(extra), *where) + name + extra

    def _end(self, start: int, length: int) -> bytes:
        count, stop = len(self._records), start + length
        large = b""
        if stop >= self._zip64_from or count >= _U16:
            about = (44, _ZIP64_VERSION, _ZIP64_VERSION, 0, 0, count, count, length, start)
            large = struct.pack("<IQ2H2I4Q", 0x06064B50, *about) + struct.pack("<2IQI", 0x07064B50, 0, stop, 1)
        shown = (min(count, _U16), min(count, _U16), min(length, _U32), min(start, _U32))
        return large + struct.pack("<I4H2IH", 0x06054B50, 0, 0, *shown, 0)
