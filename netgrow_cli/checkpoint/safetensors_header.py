"""The header of a safetensors file: read with every check that the format asks for, and written.

A file is: the header's length (8 bytes, little-endian), the header (JSON), the tensors' bytes without holes.
The checks are at least as strict as the safetensors library's, and need neither it nor torch, so that a
checkpoint opens in milliseconds. Stricter on purpose: duplicate keys are an error wherever they are, and an
entry is an object, never the array that the library also takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from netgrow_cli.checkpoint.dtypes import RANK, SAFETENSORS_BITS, nbytes
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.frozen import frozen

MAX_HEADER = 100_000_000
_MAX_DEPTH = 127
_U64 = 1 << 64
_METADATA = "__metadata__"


class HeaderError(ValueError):
    """What is wrong with a header, without the file's name; the reader adds it."""


@frozen
class Entry:
    """One tensor and where its bytes lie, counted from the end of the header."""

    info: TensorInfo
    start: int
    stop: int


@frozen
class Header:
    """A validated header. `metadata` is None where the file has none; `data_start` is where tensors begin."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str] | None
    data_start: int


def header_length(first: bytes, file_size: int) -> int:
    """The header's length from the file's first 8 bytes."""
    if file_size == 0:
        raise HeaderError("the file is empty")
    if file_size < 8:
        raise HeaderError(f"the file has {file_size} bytes; the header's length alone takes 8")
    length = int.from_bytes(first[:8], "little")
    if length == 0:
        raise HeaderError("the header has length 0")
    if length > MAX_HEADER:
        raise HeaderError(f"the header claims {length} bytes, more than the {MAX_HEADER} allowed")
    if 8 + length > file_size:
        raise HeaderError(f"the header claims {length} bytes and {file_size - 8} follow: the file is truncated")
    return length


def parse_header(raw: bytes, file_size: int) -> Header:
    """Check a header (without the 8 bytes of its length) against the format and the file's size."""
    root = _parse_json(raw)
    if not isinstance(root, dict):
        raise HeaderError(f"the header is {_kind(root)}; expected an object")
    metadata = _metadata(root[_METADATA]) if _METADATA in root else None
    entries = sorted(
        (_entry(name, value) for name, value in root.items() if name != _METADATA),
        key=lambda entry: (entry.start, entry.stop),
    )
    _check_coverage(entries, file_size - 8 - len(raw))
    return Header(tuple(entries), metadata, 8 + len(raw))


def layout(infos: Sequence[TensorInfo]) -> list[Entry]:
    """Where each tensor goes: by falling rank of dtype, then by name, as the library lays them out."""
    entries: list[Entry] = []
    position = 0
    for info in sorted(infos, key=lambda info: (-RANK[info.dtype], info.name)):
        size = nbytes(info.dtype, info.shape)
        entries.append(Entry(info, position, position + size))
        position += size
    return entries


def encode_header(entries: Sequence[Entry], metadata: Mapping[str, str] | None) -> bytes:
    """The file's first bytes: length and padded JSON, the same as the library's."""
    root: dict[str, Any] = {}
    if metadata is not None:
        root[_METADATA] = dict(sorted(metadata.items()))
    for entry in entries:
        root[entry.info.name] = {
            "dtype": entry.info.dtype,
            "shape": list(entry.info.shape),
            "data_offsets": [entry.start, entry.stop],
        }
    text = json.dumps(root, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parse_json(raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HeaderError(f"the header is not UTF-8 (byte {error.start})") from None
    if text.startswith("\ufeff"):
        raise HeaderError("the header starts with a byte order mark")
    try:
        root = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_number,
            parse_int=_integer,
        )
    except RecursionError:
        raise HeaderError("the header is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise HeaderError(f"the header is not JSON: {error.msg} (character {error.pos})") from None
    if b"\\u" in raw:
        _check_surrogates(root)
    _check_depth(root)
    return root


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise HeaderError(f"the header has the key {name!r} twice")
            seen.add(name)
    return found


def _no_constant(word: str) -> NoReturn:
    raise HeaderError(f"the header holds {word}, which is not JSON")


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise HeaderError("the header holds a number out of range")
    return value


def _integer(text: str) -> int | float:
    # Python reads -0 as the integer 0; the format's other readers, as a float, which no size may be.
    if text == "-0" or len(text) > 300:
        return _number(text)
    return int(text)


def _check_surrogates(root: Any) -> None:
    try:
        json.dumps(root, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HeaderError("the header holds half of a surrogate pair, which is not text") from None
    except RecursionError:
        raise HeaderError("the header is nested too deeply") from None


def _check_depth(root: Any) -> None:
    level = [root]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in _containers(node)]
        if not level:
            return
    raise HeaderError(f"the header is nested too deeply (more than {_MAX_DEPTH} levels)")


def _containers(node: Any) -> Iterator[Any]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return (child for child in children if isinstance(child, (dict, list)))


def _metadata(value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise HeaderError(f"{_METADATA} is {_kind(value)}; expected an object of text to text")
    for key, text in value.items():
        if not isinstance(text, str):
            raise HeaderError(f"{_METADATA}: {key!r} is {_kind(text)}; expected text")
    return value


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise HeaderError(f"tensor {name!r} is {_kind(value)}; expected an object")
    for field in ("dtype", "shape", "data_offsets"):
        if field not in value:
            raise HeaderError(f"tensor {name!r} has no {field}")
    dtype = value["dtype"]
    if not isinstance(dtype, str):
        raise HeaderError(f"tensor {name!r}: dtype is {_kind(dtype)}; expected text such as 'F32'")
    if dtype not in SAFETENSORS_BITS:
        known = ", ".join(SAFETENSORS_BITS)
        raise HeaderError(f"tensor {name!r}: unknown dtype {dtype!r}; expected one of {known}")
    shape = _sizes(name, "shape", value["shape"])
    offsets = _sizes(name, "data_offsets", value["data_offsets"])
    if len(offsets) != 2:
        raise HeaderError(f"tensor {name!r}: data_offsets has {len(offsets)} numbers; expected start and end")
    start, stop = offsets
    if stop < start:
        raise HeaderError(f"tensor {name!r}: data_offsets end at {stop}, before the start {start}")
    size = _checked_bytes(name, dtype, shape)
    if stop - start != size:
        raise HeaderError(
            f"tensor {name!r}: {dtype} {list(shape)} takes {size} bytes, and data_offsets span {stop - start}"
        )
    return Entry(TensorInfo(name, shape, dtype), start, stop)


def _sizes(name: str, field: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise HeaderError(f"tensor {name!r}: {field} is {_kind(value)}; expected a list of integers")
    for size in value:
        if type(size) is not int:  # a bool is an int to isinstance
            raise HeaderError(f"tensor {name!r}: {field} holds {_kind(size)}; expected integers")
        if not 0 <= size < _U64:
            raise HeaderError(f"tensor {name!r}: {field} holds {size}; expected 0 to 2^64 - 1")
    return tuple(value)


def _checked_bytes(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    # Multiplied in order and checked at each step, as a reader with 64-bit numbers has to.
    count = 1
    for size in shape:
        count *= size
        if count >= _U64:
            raise HeaderError(f"tensor {name!r}: the number of elements of {list(shape)} overflows 64 bits")
    bits = count * SAFETENSORS_BITS[dtype]
    if bits >= _U64:
        raise HeaderError(f"tensor {name!r}: the size in bits of {dtype} {list(shape)} overflows 64 bits")
    if bits % 8:
        raise HeaderError(f"tensor {name!r}: {dtype} {list(shape)} ends within a byte")
    return bits // 8


def _check_coverage(entries: Sequence[Entry], available: int) -> None:
    position = 0
    for entry in entries:
        name, start = entry.info.name, entry.start
        if start < position:
            raise HeaderError(f"tensor {name!r} starts at {start} and overlaps bytes up to {position}")
        if start > position:
            raise HeaderError(f"bytes {position} to {start} before tensor {name!r} belong to no tensor")
        position = entry.stop
    if position > available:
        raise HeaderError(f"the tensors take {position} bytes and {available} are there: the file is truncated")
    if position < available:
        raise HeaderError(f"{available - position} bytes after the last tensor belong to no tensor")


def _kind(value: Any) -> str:
    """A JSON value in words, short enough for an error message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"the number {value}"
