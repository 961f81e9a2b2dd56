"""One change of one small module, from a state dict to fitted modules before and after."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import netgrow_cli
from netgrow_cli.jobs.job import Report

torch.set_num_threads(1)


def spec_of(inputs: str, outputs: str, **layers: str) -> str:
    """The text of a spec: `spec_of("x: [batch, 4]", "fc2", fc1="op: linear, from: x")`."""
    lines = ["netgrow: 1", f"inputs: {{{inputs}}}", "layers:"]
    lines += [f"  {name}: {{{body}}}" for name, body in layers.items()]
    return "\n".join([*lines, f"outputs: [{outputs}]", ""])


def save(folder: Path, text: str, state: Any, name: str = "net.pt") -> Path:
    """A checkpoint with its spec beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(dict(state), path)
    else:
        torch.save(state, path)
    (folder / f"{name}.netgrow.yaml").write_text(text, encoding="utf-8")
    return path


@dataclass
class Edit:
    """What went in and what came out, the modules in float64."""

    report: Report
    path: Path
    before: nn.Module
    after: nn.Module
    old: dict[str, torch.Tensor]
    new: dict[str, torch.Tensor]

    def distance(self, *inputs: torch.Tensor) -> float:
        """How far the real modules' outputs are apart, relative to their size."""
        with torch.no_grad():
            one, other = self.before(*inputs), self.after(*inputs)
        assert one.shape == other.shape
        return float((one - other).abs().max() / one.abs().max())


def edit(folder: Path, text: str, module: nn.Module, command: str, **settings: Any) -> Edit:
    """Save the module's state, change it, fit copies of the module to both files."""
    path = save(folder, text, module.state_dict())
    settings.setdefault("output", folder / f"{command}.pt")
    report = getattr(netgrow_cli, command)(path, probes=settings.pop("probes", 64), **settings)
    before = netgrow_cli.fit(copy.deepcopy(module).double(), path).eval()
    after = netgrow_cli.fit(copy.deepcopy(module).double(), report.output).eval()
    new = torch.load(report.output, weights_only=True)
    return Edit(report, report.output, before, after, dict(module.state_dict()), new)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values that no test can mistake for another's: gains off one, biases off zero, spread statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        value = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_var"):
            value = value.abs() + 0.5
        elif tensor.dim() == 1 and name.endswith("weight"):
            value = 1 + 0.3 * value
        elif tensor.dim() > 1:
            value = value / tensor[0].numel() ** 0.5
        tensor.copy_(value)
    return module.eval()


def inputs(*shape: int, seed: int = 99) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
