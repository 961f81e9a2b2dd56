"""Every way in which a safetensors file can be invalid, beside what the safetensors library says of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors

from netgrow_cli.checkpoint import open_checkpoint
from netgrow_cli.errors import CheckpointError


def file_of(header: str | bytes | dict[str, Any], data: bytes = b"") -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


def entry(dtype: str, shape: str, offsets: str, more: str = "") -> str:
    return f'{{"x":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}}}'


def pair(a: tuple[int, int], b: tuple[int, int]) -> dict[str, Any]:
    return {
        name: {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        for name, (start, stop) in {"a": a, "b": b}.items()
    }


U64 = 2**64
FOUR = b"\1\2\3\4"

REJECTED = {
    # the header's length
    "empty file": (b"", "is empty"),
    "one byte": (b"\1", "header's length alone"),
    "seven bytes": (b"\0" * 7, "header's length alone"),
    "length 0": (b"\0" * 8, "length 0"),
    "length 0, more bytes": (b"\0" * 64, "length 0"),
    "length past the end": (struct.pack("<Q", 100) + b"{}", "2 follow: the file is truncated"),
    "length one past the end": (struct.pack("<Q", 3) + b"{}", "truncated"),
    "length over 100 MB": (struct.pack("<Q", 100_000_001) + b"{}", "more than the 100000000"),
    "length 2^64 - 1": (b"\xff" * 8 + b"{}", "more than the 100000000"),
    # the header's text
    "not UTF-8": (file_of(b'{"\xff":1}'), "not UTF-8"),
    "overlong UTF-8": (file_of(b'{"\xc0\x80":1}'), "not UTF-8"),
    "a surrogate in UTF-8": (file_of(b'{"\xed\xa0\x80":1}'), "not UTF-8"),
    "JSON cut off": (file_of('{"x":{"dtype":"U8"'), "not JSON"),
    "only blanks": (file_of("      "), "not JSON"),
    "list at the root": (file_of("[]"), "a list; expected an object"),
    "null at the root": (file_of("null"), "null; expected an object"),
    "number at the root": (file_of("12"), "the number 12; expected an object"),
    "trailing junk": (file_of("{} x"), "Extra data"),
    "two objects": (file_of("{}{}"), "Extra data"),
    "byte order mark": (file_of("\ufeff{}"), "byte order mark"),
    "padded with NUL": (file_of("{}\0\0"), "Extra data"),
    "trailing comma": (file_of('{"x":1,}'), "not JSON"),
    "single quotes": (file_of("{'x':1}"), "not JSON"),
    "raw control character": (file_of('{"__metadata__":{"a":"\x01"}}'), "not JSON"),
    "NaN": (file_of(entry('"U8"', "[4]", "[0,4]", ',"e":NaN'), FOUR), "NaN"),
    "Infinity": (file_of(entry('"U8"', "[4]", "[0,4]", ',"e":Infinity'), FOUR), "Infinity"),
    "-Infinity": (file_of(entry('"U8"', "[4]", "[0,4]", ',"e":-Infinity'), FOUR), "-Infinity"),
    "number out of range": (file_of(entry('"U8"', "[4]", "[0,4]", ',"e":1e999'), FOUR), "out of range"),
    "huge integer": (file_of(entry('"U8"', "[4]", "[0,4]", f',"e":{"9" * 5000}'), FOUR), "out of range"),
    "lone high surrogate": (file_of(r'{"__metadata__":{"a":"\ud800"}}'), "surrogate"),
    "lone low surrogate": (file_of(r'{"__metadata__":{"\udc00":"a"}}'), "surrogate"),
    "nested 128 deep": (file_of(entry('"U8"', "[4]", "[0,4]", f',"e":{"[" * 126}{"]" * 126}'), FOUR), "deep"),
    "nested 100000 deep": (file_of("[" * 100_000 + "]" * 100_000), "deep"),
    # where bytes lie
    "bytes after the last tensor": (file_of(tensor(), FOUR + b"\0"), "1 bytes after the last tensor"),
    "bytes without a tensor": (file_of("{}", b"\0"), "after the last tensor"),
    "data cut off": (file_of(tensor(), FOUR[:3]), "3 are there: the file is truncated"),
    "no data": (file_of(tensor()), "truncated"),
    "overlap": (file_of(pair((0, 3), (2, 4)), FOUR), "overlaps"),
    "the same range twice": (file_of(pair((0, 4), (0, 4)), FOUR), "overlaps"),
    "hole": (file_of(pair((0, 1), (2, 4)), FOUR), "belong to no tensor"),
    "first offset not 0": (file_of(tensor(shape=[3], offsets=[1, 4]), FOUR), "bytes 0 to 1"),
    "empty tensor inside another": (file_of(pair((0, 4), (2, 2)), FOUR), "overlaps"),
    "empty tensor past the end": (file_of(pair((0, 4), (9, 9)), FOUR), "belong to no tensor"),
    "end before start": (file_of(tensor(offsets=[4, 0]), FOUR), "before the start"),
    # types
    "negative offset": (file_of(tensor(offsets=[-4, 0]), FOUR), "holds -4"),
    "float offset": (file_of(tensor(offsets=[0, 4.0]), FOUR), "the number 4.0"),
    "text offset": (file_of(tensor(offsets=[0, "4"]), FOUR), "the text '4'"),
    "true as offset": (file_of(tensor(shape=[1], offsets=[0, True]), b"\0"), "holds true"),
    "null as offsets": (file_of(tensor(offsets=None), FOUR), "null; expected a list"),
    "no offsets in the list": (file_of(tensor(offsets=[]), FOUR), "has 0 numbers"),
    "one offset": (file_of(tensor(offsets=[4]), FOUR), "has 1 numbers"),
    "three offsets": (file_of(tensor(offsets=[0, 4, 4]), FOUR), "has 3 numbers"),
    "offset 2^64": (file_of(tensor(offsets=[0, U64]), FOUR), "expected 0 to 2^64 - 1"),
    "negative dimension": (file_of(tensor(shape=[-4]), FOUR), "shape holds -4"),
    "two negative dimensions": (file_of(tensor(shape=[-2, -2]), FOUR), "shape holds -2"),
    "float dimension": (file_of(tensor(shape=[4.0]), FOUR), "shape holds the number 4.0"),
    "minus zero": (file_of(entry('"U8"', "[-0]", "[0,0]")), "shape holds the number -0.0"),
    "true as dimension": (file_of(tensor(shape=[True], offsets=[0, 1]), b"\0"), "shape holds true"),
    "text as shape": (file_of(tensor(shape="4"), FOUR), "shape is the text '4'"),
    "dimension 2^64": (file_of(tensor(shape=[U64]), FOUR), "expected 0 to 2^64 - 1"),
    "no dtype": (file_of('{"x":{"shape":[4],"data_offsets":[0,4]}}', FOUR), "has no dtype"),
    "no shape": (file_of('{"x":{"dtype":"U8","data_offsets":[0,4]}}', FOUR), "has no shape"),
    "no offsets": (file_of('{"x":{"dtype":"U8","shape":[4]}}', FOUR), "has no data_offsets"),
    "empty entry": (file_of('{"x":{}}'), "has no dtype"),
    "null entry": (file_of('{"x":null}'), "is null; expected an object"),
    "text entry": (file_of('{"x":"y"}'), "is the text 'y'"),
    "unknown dtype": (file_of(tensor(dtype="F128"), FOUR), "unknown dtype 'F128'"),
    "lower-case dtype": (file_of(tensor(dtype="u8"), FOUR), "unknown dtype 'u8'"),
    "number as dtype": (file_of(tensor(dtype=8), FOUR), "dtype is the number 8"),
    "duplicate field": (file_of(entry('"U8"', "[4]", "[0,4]", ',"dtype":"U8"'), FOUR), "'dtype' twice"),
    # sizes
    "shape larger than its bytes": (
        file_of(tensor(shape=[5]), FOUR),
        "takes 5 bytes, and data_offsets span 4",
    ),
    "shape smaller than its bytes": (file_of(tensor(shape=[3]), FOUR), "takes 3 bytes"),
    "dtype larger than its bytes": (file_of(tensor(dtype="F64"), FOUR), "takes 32 bytes"),
    "elements overflow": (file_of(tensor(shape=[2**32, 2**32]), FOUR), "number of elements"),
    "elements overflow before a 0": (
        file_of(tensor(shape=[2**63, 2, 0], offsets=[0, 0])),
        "number of elements",
    ),
    "bits overflow": (file_of(tensor(dtype="F64", shape=[2**60]), FOUR), "size in bits"),
    "odd count of F4": (file_of(tensor(dtype="F4", shape=[7]), FOUR), "within a byte"),
    "three F6": (file_of(tensor(dtype="F6_E2M3", shape=[3], offsets=[0, 2]), b"\0\0"), "within a byte"),
    # metadata
    "metadata a list": (file_of('{"__metadata__":[]}'), "__metadata__ is a list"),
    "metadata a text": (file_of('{"__metadata__":"a"}'), "__metadata__ is the text"),
    "number in metadata": (file_of('{"__metadata__":{"a":1}}'), "'a' is the number 1"),
    "object in metadata": (file_of('{"__metadata__":{"a":{}}}'), "'a' is an object"),
    "null in metadata": (file_of('{"__metadata__":{"a":null}}'), "'a' is null"),
    "duplicate metadata": (file_of('{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' twice"),
    "many tensors in one range": (
        file_of({f"t{i}": tensor()["x"] for i in range(10_000)}, FOUR),
        "overlaps",
    ),
}

# The library takes these. A duplicate key hides a tensor; an array as entry is an accident of its parser.
STRICTER = {
    "duplicate tensor": (
        file_of(entry('"U8"', "[4]", "[0,4]")[:-1] + "," + entry('"U8"', "[4]", "[0,4]")[1:], FOUR),
        "'x' twice",
    ),
    "duplicate metadata key": (file_of('{"__metadata__":{"a":"1","a":"2"}}'), "'a' twice"),
    "duplicate unknown field": (file_of(entry('"U8"', "[4]", "[0,4]", ',"e":1,"e":2'), FOUR), "'e' twice"),
    "entry as array": (file_of('{"x":["U8",[4],[0,4]]}', FOUR), "is a list; expected an object"),
    "dtype as object": (file_of(tensor(dtype={"U8": None}), FOUR), "dtype is an object"),
}


def library_accepts(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


def open_content(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return open_checkpoint(path)


@pytest.mark.parametrize("case", REJECTED)
def test_rejected_with_the_reason_as_the_library_does(tmp_path: Path, case: str) -> None:
    content, reason = REJECTED[case]
    with pytest.raises(CheckpointError) as caught:
        open_content(tmp_path, content)
    message = str(caught.value)
    assert reason in message
    assert str(tmp_path / "model.safetensors") in message
    assert "\n" not in message
    assert not library_accepts(content)


@pytest.mark.parametrize("case", STRICTER)
def test_stricter_than_the_library(tmp_path: Path, case: str) -> None:
    content, reason = STRICTER[case]
    with pytest.raises(CheckpointError, match=reason):
        open_content(tmp_path, content)
    assert library_accepts(content)


ACCEPTED: dict[str, tuple[bytes, dict[str, tuple[str, tuple[int, ...], bytes]]]] = {
    "blanks around": (file_of(" \n\t\r{ } \n"), {}),
    "no tensors": (file_of("{}"), {}),
    "metadata alone": (file_of('{"__metadata__":{"a":"b"}}'), {}),
    "metadata null": (file_of('{"__metadata__":null}'), {}),
    "metadata last": (
        file_of(entry('"U8"', "[4]", "[0,4]")[:-1] + ',"__metadata__":{}}', FOUR),
        {"x": ("U8", (4,), FOUR)},
    ),
    "odd header length": (file_of(json.dumps(tensor()) + " ", FOUR), {"x": ("U8", (4,), FOUR)}),
    "any order": (
        file_of(dict(reversed(pair((0, 1), (1, 4)).items())), FOUR),
        {"a": ("U8", (1,), FOUR[:1]), "b": ("U8", (3,), FOUR[1:])},
    ),
    "F32 at an odd offset": (
        file_of(
            {"a": tensor(shape=[1], offsets=[0, 1])["x"], "b": tensor("F32", [1], [1, 5])["x"]},
            b"\7" + struct.pack("<f", 1.5),
        ),
        {"a": ("U8", (1,), b"\7"), "b": ("F32", (1,), struct.pack("<f", 1.5))},
    ),
    "scalar": (file_of(tensor("F32", [], [0, 4]), FOUR), {"x": ("F32", (), FOUR)}),
    "empty tensor": (file_of(tensor(shape=[0], offsets=[0, 0])), {"x": ("U8", (0,), b"")}),
    "empty tensors at one place": (
        file_of({**tensor(), **{n: tensor(shape=[3, 0], offsets=[4, 4])["x"] for n in "yz"}}, FOUR),
        {"x": ("U8", (4,), FOUR), "y": ("U8", (3, 0), b""), "z": ("U8", (3, 0), b"")},
    ),
    "0 before an overflow": (
        file_of(tensor(shape=[0, U64 - 1, 9], offsets=[0, 0])),
        {"x": ("U8", (0, U64 - 1, 9), b"")},
    ),
    "unknown fields": (file_of(tensor(extra={"a": [1, 2.5, None]}), FOUR), {"x": ("U8", (4,), FOUR)}),
    "nested 127 deep": (
        file_of(entry('"U8"', "[4]", "[0,4]", f',"e":{"[" * 125}{"]" * 125}'), FOUR),
        {"x": ("U8", (4,), FOUR)},
    ),
    "empty name": (file_of({"": tensor()["x"]}, FOUR), {"": ("U8", (4,), FOUR)}),
    "a path as name": (file_of({"../x": tensor()["x"]}, FOUR), {"../x": ("U8", (4,), FOUR)}),
    "surrogate pair": (
        file_of(r'{"\ud83d\ude00":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', FOUR),
        {"\U0001f600": ("U8", (4,), FOUR)},
    ),
    "F4": (file_of(tensor("F4", [2, 4]), FOUR), {"x": ("F4", (2, 4), FOUR)}),
    "F6": (file_of(tensor("F6_E3M2", [4], [0, 3]), FOUR[:3]), {"x": ("F6_E3M2", (4,), FOUR[:3])}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_as_the_library_does(tmp_path: Path, case: str) -> None:
    content, tensors = ACCEPTED[case]
    assert library_accepts(content)
    with open_content(tmp_path, content) as checkpoint:
        found = {
            name: (info.dtype, info.shape, checkpoint.read_bytes(name)) for name, info in checkpoint.tensors.items()
        }
    assert found == tensors


def test_every_byte_of_a_header_flipped_is_judged_as_the_library_judges(tmp_path: Path) -> None:
    content = file_of(
        {"__metadata__": {"a": "b"}, **pair((0, 1), (1, 4)), "c": tensor("F32", [1], [4, 8])["x"]},
        FOUR + FOUR,
    )
    disagreements = []
    for position in range(len(content) - 8):
        for bit in (0, 1, 2, 5, 7):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            try:
                open_content(tmp_path, bytes(changed)).close()
                ours = True
            except CheckpointError:
                ours = False
            if ours != library_accepts(bytes(changed)):
                disagreements.append((position, bit, bytes(changed)))
    # a flip that makes two keys equal is the one case in which we are stricter on purpose
    assert all(len(json.loads(c[8 : 8 + int.from_bytes(c[:8], "little")])) < 4 for _, _, c in disagreements)
