"""Writes a torch file tensor by tensor, in the format of torch.save.

torch.save takes a whole object at once, so all its tensors must be in memory. Here each changed tensor's
bytes go to the file as they come and only an empty stand-in is kept for the pickle, which is written last.
It also makes the bytes a function of the content alone: torch.save writes the file's name into the archive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import mmap
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from netgrow_cli.checkpoint.dtypes import has_torch_form, torch_form
from netgrow_cli.checkpoint.stored_zip import StoredZip
from netgrow_cli.checkpoint.tensor_bytes import as_bytes, check, storage_bytes
from netgrow_cli.checkpoint.torch_records import Records
from netgrow_cli.checkpoint.torch_tree import with_items
from netgrow_cli.checkpoint.transfer import copy
from netgrow_cli.checkpoint.types import Region, TensorInfo, Writer
from netgrow_cli.frozen import frozen

# The archive's folder; torch.save takes the file's name without its ending.
_FOLDER = "archive"
# torch.save's own, which every torch since 1.6 reads.
_PROTOCOL = 2
# Below this many bytes a tensor takes memory; a process may have some ten thousand mappings only.
_SMALL = 1 << 16


# Puts the file's object together from the tensors by name; the second argument turns a DeferredTensor,
# wherever it is in a value, into a stand-in whose bytes are in the file.
Assemble = Callable[[Mapping[str, torch.Tensor], Callable[[Any], Any]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class DeferredTensor:
    """In `replace`, stands for a tensor that is made only when it is written, such as a moment of Adam.

    original: what it takes the place of; a Parameter stays one. The same object at several places is one tensor there.
    """

    make: Callable[[], torch.Tensor]
    original: torch.Tensor | None = None


@frozen
class WrittenTensor:
    """In `replace`, stands for one of the model's tensors as it was written, with which it shares its numbers."""

    name: str


class TorchWriter(Writer):
    """Takes tensors one at a time; `assemble` makes the file's object from them.

    originals: the source file's tensors. One that comes back as it was read is kept as the very object it
    was, with its strides and whatever storage it shares with others. records: where in the source file storages lie;
    what stays as it is is copied from there.
    """

    carries = True

    def __init__(
        self,
        path: Path,
        tensors: Sequence[TensorInfo],
        assemble: Assemble,
        originals: Mapping[str, torch.Tensor] | None = None,
        records: Records | None = None,
    ) -> None:
        self._infos = {info.name: info for info in tensors}
        if len(self._infos) < len(tensors):
            raise ValueError(f"two tensors for {path} have the same name")
        for info in tensors:
            if info.tied_to is not None and info.tied_to not in self._infos:
                raise ValueError(f"tensor {info.name!r} is tied to {info.tied_to!r}, which is not written")
        self._tie_targets = {info.tied_to for info in tensors if info.tied_to is not None}
        self._originals = originals or {}
        self._assemble = assemble
        self._archive = _TorchArchive(path, records)
        self._values: dict[str, torch.Tensor] = {}
        self._digests: dict[str, bytes] = {}
        self._made: dict[DeferredTensor, torch.Tensor] = {}

    def write(self, name: str, tensor: torch.Tensor) -> None:
        info = self._infos.get(name)
        if info is None or name in self._values:
            raise ValueError(f"tensor {name!r} was not announced, or is written twice")
        check(info, tensor)
        original = self._originals.get(name)
        unchanged = original is not None and same_view(tensor, original)
        if info.tied_to is not None and not (unchanged and self._is_original(info.tied_to)):
            self._check_tie(name, info.tied_to, tensor)
            self._values[name] = self._alias(name, info.tied_to)
            return
        if name in self._tie_targets:
            self._digests[name] = _digest(tensor)
        if original is not None and unchanged:
            self._values[name] = original
        else:
            self._values[name] = dressed_as(original, self._archive.add_tensor(tensor))

    def region(self, name: str) -> Region | None:
        """Room for a tensor that changes: row-major, in a storage of its own."""
        info, original = self._infos[name], self._originals.get(name)
        if info.tied_to is not None or name in self._tie_targets or name in self._values:
            return None
        if original is not None and (original.is_quantized or not original.is_contiguous()):
            return None  # (its strides are to stay)
        dtype, shape = torch_form(info.dtype, info.shape)
        if has_torch_form(info.dtype, info.shape):
            stand_in, region = self._archive.reserve(dtype, shape)
            self._values[name] = dressed_as(original, stand_in)
            return region
        return None

    def finish(self) -> None:
        for name, info in self._infos.items():
            if name not in self._values and info.tied_to in self._values:
                self._values[name] = self._alias(name, info.tied_to)
        if missing := [name for name in self._infos if name not in self._values]:
            raise ValueError(f"tensors announced and never written: {', '.join(missing)}")
        self._archive.finish(self._assemble(self._values, self._write_deferred))

    def _is_original(self, name: str) -> bool:
        return name in self._values and self._values[name] is self._originals.get(name)

    def _check_tie(self, name: str, first: str, tensor: torch.Tensor) -> None:
        if first not in self._digests:
            raise ValueError(f"tensor {name!r} is tied to {first!r}, which must be written before it")
        if _digest(tensor) != self._digests[first]:
            raise ValueError(f"tensor {name!r} is tied to {first!r} and came with other values")

    def _alias(self, name: str, first: str) -> torch.Tensor:
        one_object = name in self._originals and self._originals[name] is self._originals.get(first)
        value = self._values[first]
        return value if one_object else dressed_as(self._originals.get(name), value.detach())

    def _write_deferred(self, value: Any) -> Any:
        if isinstance(value, WrittenTensor):
            return self._values[value.name]
        if isinstance(value, DeferredTensor):
            if value not in self._made:
                self._made[value] = dressed_as(value.original, self._archive.add_tensor(value.make()))
            return self._made[value]
        if isinstance(value, dict):
            done = {key: self._write_deferred(item) for key, item in value.items()}
        elif isinstance(value, (list, tuple)):
            done = dict(enumerate(map(self._write_deferred, value)))
        else:
            return value
        items = value if isinstance(value, dict) else dict(enumerate(value))
        return with_items(value, {key: item for key, item in done.items() if item is not items[key]})


def same_view(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if both are the same numbers in the same memory, not merely equal ones."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
        and a.untyped_storage()._cdata == b.untyped_storage()._cdata
    )


def dressed_as(original: torch.Tensor | None, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a Parameter, or one that takes gradients, where the original is that."""
    if isinstance(original, torch.nn.Parameter):
        parameter = torch.nn.Parameter(tensor, requires_grad=original.requires_grad)
        parameter.__dict__.update(original.__dict__)
        return parameter
    return tensor.requires_grad_(original is not None and original.requires_grad)


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same dtype, shape and strides, with a storage of its own that takes no memory.

    Pages that are never touched are never given by the system. torch.empty will not do for large tensors: it
    reuses memory that was touched before.
    """
    size = tensor.numel() * tensor.element_size()
    if size < _SMALL:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    flat = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    return flat.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.blake2b(as_bytes(tensor)).digest()


class _TorchArchive:
    """The zip archive: a record for each storage, and the pickle of the object that refers to them."""

    def __init__(self, path: Path, records: Records | None) -> None:
        self._zip = StoredZip(path)
        self._records = records
        # By the storage's address; the storage is kept so that the address stays its own.
        self._storages: dict[int, tuple[str, torch.UntypedStorage]] = {}
        self._written: set[str] = set()

    def add_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Write the numbers; returned is an empty tensor that is pickled as if it held them."""
        plain = tensor.detach()
        if plain.is_quantized:
            return plain  # its scales belong to it; written with the pickle
        plain = plain.cpu().resolve_conj().resolve_neg()
        if not plain.is_contiguous():
            plain = plain.clone()  # without gaps; channels_last and the like keep their strides
        size = plain.numel() * plain.element_size()
        start = plain.storage_offset() * plain.element_size()
        stand_in = _without_memory(plain)
        key = self._key(stand_in.untyped_storage())
        self._record(key, storage_bytes(plain.untyped_storage())[start : start + size])
        return stand_in

    def reserve(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[torch.Tensor, Region]:
        """Room for a tensor's values, and an empty tensor that is pickled as if it held them."""
        stand_in = _without_memory(torch.empty(shape, dtype=dtype, device="meta"))
        key = self._key(stand_in.untyped_storage())
        self._written.add(key)
        size = stand_in.numel() * stand_in.element_size()
        return stand_in, self._zip.reserve(f"{_FOLDER}/data/{key}", size)

    def finish(self, tree: Any) -> None:
        """Pickle the object, write the storages that are not there yet, close."""
        buffer = io.BytesIO()
        _pickler(buffer, self._key).dump(tree)
        for key, storage in self._storages.values():
            if key not in self._written:
                self._carry_over(key, storage)
        # No .format_version: with it, torch may compute where records lie instead of looking it up.
        self._zip.add(f"{_FOLDER}/data.pkl", buffer.getvalue())
        self._zip.add(f"{_FOLDER}/byteorder", sys.byteorder.encode())
        self._zip.add(f"{_FOLDER}/version", b"3\n")
        self._zip.finish()

    def _key(self, storage: torch.UntypedStorage) -> str:
        return self._storages.setdefault(storage._cdata, (str(len(self._storages)), storage))[0]

    def _carry_over(self, key: str, storage: torch.UntypedStorage) -> None:
        """A storage as it is: its record, with the CRC that it has, from file to file; else what memory holds."""
        found = self._records.of(storage) if self._records is not None else None
        if found is None:
            self._record(key, storage_bytes(storage))
            return
        size = found.region.size
        copy(found.region, self._zip.reserve(f"{_FOLDER}/data/{key}", size, found.check))

    def _record(self, key: str, data: memoryview) -> None:
        self._zip.add(f"{_FOLDER}/data/{key}", data)
        self._written.add(key)


def _pickler(buffer: io.BytesIO, key_of: Callable[[torch.UntypedStorage], str]) -> pickle.Pickler:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, torch.storage.TypedStorage):
                kind = getattr(torch, obj._pickle_storage_type())  # type: ignore[no-untyped-call]
                count = obj._size()  # type: ignore[no-untyped-call]
                return ("storage", kind, key_of(obj._untyped_storage), "cpu", count)
            if isinstance(obj, torch.UntypedStorage):
                return ("storage", torch.UntypedStorage, key_of(obj), "cpu", obj.nbytes())
            return None

    return Pickler(buffer, protocol=_PROTOCOL)
