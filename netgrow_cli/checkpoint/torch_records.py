"""Where in a torch file the storages lie that `torch.load(mmap=True)` mapped.

torch does not tell. But it maps the file in one piece, so that all storages lie as far apart in memory as their records
do in the file: the one distance that takes every storage to a record of its size is that of the mapping. Where there is
no such distance, or more than one, nothing is known and everything is read through the map.
"""

from __future__ import annotations

import mmap
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from io import FileIO
from typing import Any

import torch

from netgrow_cli.checkpoint.positioned import read_at
from netgrow_cli.checkpoint.types import Region
from netgrow_cli.frozen import frozen

# A record's own header, before its name and extra field.
_HEADER = 30


@frozen
class Record:
    """A storage's bytes in the file, and their CRC-32 as the file has it."""

    region: Region
    check: int


class Records:
    """The records of an open torch file, by the storages that are mapped from it.

    file: the open file; tree: what was loaded from it, mapped.
    """

    def __init__(self, file: FileIO, tree: Any) -> None:
        self._file = file
        self._by_address = _located(file, tree)

    def of(self, storage: torch.UntypedStorage) -> Record | None:
        """The record of a mapped storage; None for one that is not from this file."""
        record = self._by_address.get(storage.data_ptr())
        return record if record is not None and record.region.size == storage.nbytes() else None

    def region(self, tensor: torch.Tensor) -> Region | None:
        """Where a tensor's values lie in one run, row-major; None where they do not."""
        if tensor.is_quantized or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            return None
        record = self.of(tensor.untyped_storage())
        if record is None:
            return None
        width, first = tensor.element_size(), int(tensor.storage_offset())
        return Region(record.region.fd, record.region.start + first * width, tensor.numel() * width)


def _located(file: FileIO, tree: Any) -> Mapping[int, Record]:
    storages = {storage.data_ptr(): storage.nbytes() for storage in _storages(tree, set()) if storage.nbytes()}
    records = _records(file)
    sizes = {record.region.start: record.region.size for record in records}
    if not storages or not records:
        return {}
    counts = Counter(sizes.values())
    rarest = min(storages, key=lambda address: counts[storages[address]])
    bases = [
        base
        for start, size in sizes.items()
        if size == storages[rarest] and (base := rarest - start) % mmap.PAGESIZE == 0
        if all(sizes.get(address - base) == length for address, length in storages.items())
    ]
    if len(bases) != 1:
        return {}
    return {bases[0] + record.region.start: record for record in records}


def _records(file: FileIO) -> list[Record]:
    """The archive's records that hold storages; none where their bytes are those of another kind of machine."""
    found, fd = [], file.fileno()
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            folder, _, name = entry.filename.partition("/")
            if name == "byteorder" and archive.read(entry).decode("ascii", "replace") != sys.byteorder:
                return []
            if name.startswith("data/") and folder:
                header = read_at(fd, entry.header_offset, _HEADER)
                lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                start = entry.header_offset + _HEADER + lengths
                found.append(Record(Region(fd, start, entry.file_size), entry.CRC))
    return found


def _storages(node: Any, seen: set[int]) -> Iterator[torch.UntypedStorage]:
    """Every storage in the tree, tensors in objects' attributes too."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, torch.Tensor):
        if node.layout == torch.strided and node.device.type == "cpu" and not node.is_nested:
            yield node.untyped_storage()
    elif isinstance(node, dict):
        for value in node.values():
            yield from _storages(value, seen)
    elif isinstance(node, (list, tuple, set)):
        for value in node:
            yield from _storages(value, seen)
    elif hasattr(node, "__dict__"):
        yield from _storages(vars(node), seen)
