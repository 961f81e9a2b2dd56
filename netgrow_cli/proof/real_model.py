"""Comparison in the real model code, fitted to checkpoints: of two checkpoints, or of a spec with its model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netgrow_cli.fitting import fit
from netgrow_cli.modelcode import load_model
from netgrow_cli.proof.equivalence import Difference, Equivalence, torch_dtype
from netgrow_cli.proof.probes import Probes
from netgrow_cli.topology.library import torch_at_full_precision
from netgrow_cli.topology.network import Network


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
    torch = torch_at_full_precision()

    real = torch_dtype(dtype)
    models = [fit(load_model(source), path, spec=spec).eval().to(real) for path, spec in zip(paths, specs, strict=True)]
    difference = Difference()
    with torch.no_grad():
        for _, inputs in probes.batches(real):
            before, after = (list(_tensors(model(*inputs.values()))) for model in models)
            difference.add(before, after)
    return difference.result(tolerance, dtype, probes.origin)


def compare_with_model(
    source: str, path: Path, spec: Path | None, network: Network, probes: Probes, *, dtype: str, tolerance: float
) -> Equivalence:
    """A spec against the model it describes: its graph and the real code, on one checkpoint and the same probes."""
    torch = torch_at_full_precision()

    real = torch_dtype(dtype)
    model = fit(load_model(source), path, spec=spec).eval().to(real)
    difference = Difference()
    probes.announce("comparing", network)
    with torch.no_grad():
        for sizes, inputs in probes.batches(real):
            difference.add(list(_tensors(model(*inputs.values()))), network.outputs(sizes, inputs, real))
    return difference.result(tolerance, dtype, probes.origin)


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
