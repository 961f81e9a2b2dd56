"""Comparison in the real model code: two instances, each fitted to its checkpoint, the same probes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netgrow_cli.errors import UsageError
from netgrow_cli.fitting import fit
from netgrow_cli.proof.equivalence import Difference, Equivalence, torch_dtype
from netgrow_cli.proof.probes import Probes


def compare_models(
    source: str,
    paths: tuple[Path, Path],
    specs: tuple[Path | None, Path | None],
    probes: Probes,
    *,
    dtype: str,
    tolerance: float,
) -> Equivalence:
    """Run `package.module:factory()` with either checkpoint. Inputs go in by position, in the spec's order."""
    import torch

    real = torch_dtype(dtype)
    factory = load_factory(source)
    models = [fit(factory(), path, spec=spec).eval().to(real) for path, spec in zip(paths, specs, strict=True)]
    difference = Difference()
    with torch.no_grad():
        for _, inputs in probes.batches(real):
            before, after = (list(_tensors(model(*inputs.values()))) for model in models)
            difference.add(before, after)
    return difference.result(tolerance, dtype, probes.origin)


def load_factory(source: str) -> Any:
    """The function or class that `package.module:name` says. Raises UsageError."""
    module_name, colon, name = source.partition(":")
    if not colon or not name:
        raise UsageError(f"--model {source}: write package.module:factory")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"--model {source}: {error}") from None
    if not hasattr(module, name):
        raise UsageError(f"--model {source}: module {module_name!r} has no {name!r}")
    return getattr(module, name)


def _tensors(output: Any) -> Iterator[Any]:
    import torch

    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
