"""Probes: inputs to compare networks on, random by a seed or the user's own data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgrow_cli.errors import NetgrowError, UsageError, first_line
from netgrow_cli.frozen import frozen
from netgrow_cli.proof.table import read_table
from netgrow_cli.topology import library
from netgrow_cli.topology.graph import Graph, Input

if TYPE_CHECKING:
    from netgrow_cli.topology.network import Network

BATCH = 256
"""Rows that run at once."""

FORMATS = (".npy", ".npz", ".safetensors", ".pt", ".pth", ".csv")


@frozen
class Probes:
    """A set of inputs.

    rows: how many. data: by input name, the user's rows; None for random ones. origin: for reports.
    sizes: what named axes (`batch`, `time`) are, without the batch.
    """

    graph: Graph
    rows: int
    seed: int
    data: Mapping[str, Any] | None
    origin: str

    @property
    def random(self) -> bool:
        """Whether they are random, not data."""
        return self.data is None

    @property
    def starts(self) -> range:
        """The first row of each batch. (Data that does not fill a batch of a stated size is left out.)"""
        fixed = _fixed_batch(self.graph)
        if fixed is not None and self.data is not None:
            return range(0, self.rows - fixed + 1, fixed)
        return range(0, self.rows, fixed or min(BATCH, self.rows))

    def announce(self, what: str, *networks: Network) -> None:
        """Tell the first one's progress of a stage in which all of these networks run on all of the probes."""
        once = sum(network.bytes_of(node) for network in networks for node in network.graph.nodes)
        networks[0].progress.stage(what, len(self.starts) * once)

    def batches(self, dtype: Any, device: str = "cpu") -> Iterator[tuple[dict[str, int], dict[str, Any]]]:
        """The probes in batches: the sizes of named axes to solve with, and the inputs by name.

        dtype: of floating inputs; one of numpy's where numpy computes, for random probes.
        """
        fixed = _fixed_batch(self.graph)
        for number, start in enumerate(self.starts):
            count = fixed or min(BATCH, self.rows - start)
            sizes = self._sizes(count)
            inputs = {
                given.name: self._one(given, sizes, start, count, number, dtype, device) for given in self.graph.inputs
            }
            yield sizes, inputs

    def held_out(self, one_of: int, *, held_out: bool) -> Probes:
        """Of the user's rows every so manieth, or all others. (A batch of a stated size stays together.)"""
        if self.data is None:
            return self
        import torch

        block = _fixed_batch(self.graph) or 1
        last = (torch.arange(self.rows) // block) % one_of == one_of - 1
        rows = torch.nonzero(last == held_out).flatten()
        data = {name: tensor[: self.rows][rows] for name, tensor in self.data.items()}
        return dataclasses.replace(self, rows=len(rows), data=data)

    def _sizes(self, count: int) -> dict[str, int]:
        from netgrow_cli.topology.solve import FREE_SIZE

        sizes: dict[str, int] = {}
        for given in self.graph.inputs:
            for position, item in enumerate(given.shape):
                if isinstance(item, str) and item not in sizes:
                    size = count if position == 0 else self.graph.dims.get(item, FREE_SIZE)
                    sizes[item] = size
            if self.data is not None:
                actual = self.data[given.name].shape
                named = zip(given.shape[1:], actual[1:], strict=True)
                sizes.update({item: size for item, size in named if isinstance(item, str)})
        return sizes

    def _one(
        self, given: Input, sizes: Mapping[str, int], start: int, count: int, number: int, dtype: Any, device: str
    ) -> Any:
        if self.data is not None:
            tensor = self.data[given.name][start : start + count]
            return (tensor.to(dtype) if tensor.is_floating_point() else tensor).to(device)
        shape = tuple(sizes[item] if isinstance(item, str) else item for item in given.shape)
        return library.given(_random(given, shape, f"{self.seed}:{given.name}:{number}"), dtype, device)


def random_probes(graph: Graph, rows: int, seed: int) -> Probes:
    """Random probes: normal, or uniform over the range that the spec states for an input."""
    return Probes(graph, rows, seed, None, "random")


def data_probes(graph: Graph, path: Path, rows: int | None) -> Probes:
    """The user's probes from .npy, .npz, .safetensors, .pt or .csv. Raises UsageError."""
    arrays = _load(path)
    inputs = graph.inputs
    if len(inputs) == 1 and len(arrays) == 1:
        data = {inputs[0].name: next(iter(arrays.values()))}
    else:
        _need_names(inputs, arrays, path)
        data = {given.name: arrays[given.name] for given in inputs}
    if path.suffix == ".csv":
        data = {given.name: _from_table(given, data[given.name], path) for given in inputs}
    lengths = set()
    for given in inputs:
        _check_shape(given, data[given.name], path)
        lengths.add(len(data[given.name]))
    if len(lengths) > 1:
        counted = ", ".join(f"{given.name} {len(data[given.name])}" for given in inputs)
        raise UsageError(f"{path}: its arrays have different numbers of rows: {counted}")
    have = lengths.pop()
    if have == 0:
        raise UsageError(f"{path}: it has no rows")
    for given in inputs:
        _check_integers(given, data[given.name], path)
    return Probes(graph, min(rows or have, have), 0, data, path.name)


def _need_names(inputs: Sequence[Input], arrays: Mapping[str, Any], path: Path) -> None:
    """Raises UsageError where an input has no array of its name."""
    missing = [given.name for given in inputs if given.name not in arrays]
    if not missing:
        return
    if set(arrays) == {""}:
        wanted = ", ".join(given.name for given in inputs)
        raise UsageError(
            f"{path}: it holds one array, and the network has {len(inputs)} inputs; give an .npz, .safetensors or .pt "
            f"file with an array for each: {wanted}"
        )
    raise UsageError(f"{path}: no array named {missing[0]!r}; it has {', '.join(arrays) or 'none'}")


def _from_table(given: Input, table: Any, path: Path) -> Any:
    """A table's rows in the shape and kind of an input. Raises UsageError."""
    sizes = [item for item in given.shape[1:] if isinstance(item, int)]
    count, columns = table.shape
    if len(given.shape) != 2 and len(sizes) == len(given.shape) - 1 and math.prod(sizes) == columns:
        table = table.reshape(count, *sizes)
    elif len(sizes) == len(given.shape) - 1 and math.prod(sizes) != columns:
        raise UsageError(
            f"{path}: input {given.name!r} should be [{_shape_text(given)}], the file has {list(table.shape)}; leave "
            "out columns that are no input (labels, an index)"
        )
    if "float" in given.dtype or not bool(table.isfinite().all()):
        return table
    if not bool((table == table.round()).all()):
        raise UsageError(f"{path}: input {given.name!r} should be {given.dtype}, the file has fractions")
    return table.bool() if given.dtype == "bool" else table.long()


def _shape_text(given: Input) -> str:
    return ", ".join(str(item) for item in given.shape)


def _check_integers(given: Input, tensor: Any, path: Path) -> None:
    """Integers choose rows of tables: what the spec does not allow is not there. Raises UsageError."""
    if "int" not in given.dtype:
        return
    least, most = int(tensor.min()), int(tensor.max())
    low, high = int(given.low or 0), None if given.high is None else int(given.high)
    if least < low or (high is not None and most >= high):
        found = least if least < low else most
        allowed = f"from {low}" + (f" up to {high - 1}" if high is not None else " up")
        raise UsageError(f"{path}: input {given.name!r} holds {found}; the spec allows {allowed}")


def _check_shape(given: Input, tensor: Any, path: Path) -> None:
    shape = tuple(tensor.shape)
    fits = len(shape) == len(given.shape) and all(
        isinstance(item, str) or item == size for item, size in zip(given.shape[1:], shape[1:], strict=True)
    )
    if not fits:
        raise UsageError(f"{path}: input {given.name!r} should be [{_shape_text(given)}], the file has {list(shape)}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise UsageError(f"{path}: its values for {given.name!r} are not all finite")
    if tensor.is_floating_point() != ("float" in given.dtype):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UsageError(
            f"{path}: input {given.name!r} should be {given.dtype}, the file has {kind}; store what the network "
            "itself is given, scaled as in training"
        )


def _load(path: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    from netgrow_cli.checkpoint.detect import detect
    from netgrow_cli.checkpoint.torch_load import load_tree

    try:
        if path.suffix == ".npy":
            return {"": _tensor(np.load(path, allow_pickle=False))}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: _tensor(archive[name]) for name in archive.files}
        if path.suffix == ".csv":
            return {"": torch.from_numpy(read_table(path))}
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = load_tree(path, detect(path))
    except NetgrowError as error:
        if path.suffix in FORMATS and not path.is_dir():
            raise
        raise UsageError(f"{path}: probes are read from {', '.join(FORMATS)} files ({error})") from None
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file of probes") from None
    except Exception as error:
        raise UsageError(f"{path}: cannot be read as probes: {first_line(error)}") from None
    if isinstance(loaded, torch.Tensor):
        return {"": loaded}
    if isinstance(loaded, dict) and loaded and all(isinstance(v, torch.Tensor) for v in loaded.values()):
        return {str(name): tensor for name, tensor in loaded.items()}
    raise UsageError(f"{path}: probes should be a tensor, or tensors by input name")


def _tensor(array: Any) -> Any:
    """An array in the byte order of this machine."""
    import torch

    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _fixed_batch(graph: Graph) -> int | None:
    """The batch where a spec states it as a number."""
    return next((given.shape[0] for given in graph.inputs if isinstance(given.shape[0], int)), None)


def normal(shape: tuple[int, ...], seed: str) -> Any:
    """Normal values of mean 0 and variance 1."""
    import numpy as np

    return np.asarray(_generator(seed).standard_normal(shape))


def signs(shape: tuple[int, ...], seed: str, dtype: Any) -> Any:
    """1 and -1 at random."""
    import torch

    return torch.from_numpy(_generator(seed).integers(0, 2, shape) * 2 - 1).to(dtype)


def _generator(seed: str) -> Any:
    import hashlib

    import numpy as np

    digest = hashlib.sha256(seed.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def _random(given: Input, shape: tuple[int, ...], seed: str) -> Any:
    if given.low is None and given.high is None and given.dtype != "bool" and "int" not in given.dtype:
        return normal(shape, seed)
    generator = _generator(seed)
    if given.dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if "int" in given.dtype:
        return generator.integers(int(given.low or 0), int(given.high or 1), shape)
    low = given.low if given.low is not None else min(0.0, given.high or 0.0)
    high = given.high if given.high is not None else low + 1.0
    return generator.uniform(low, high, shape)
