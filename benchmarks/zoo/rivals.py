"""Torch-Pruning beside netgrow: the same dead unit pruned by both, in the real model.

    python -m benchmarks.zoo.rivals [NAME ...] [--seconds 120]

Each model runs in a process of its own with a time limit, since Torch-Pruning hangs on some. Torch-Pruning is needed
for this comparison only (`pip install torch-pruning`).
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import json
import multiprocessing
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.entry import Entry
from benchmarks.zoo.models import catalogue
from benchmarks.zoo.study import SET_BY_FIT, apart, silence
from benchmarks.zoo.weights import enliven
from netgrow_cli.errors import NetgrowError
from netgrow_cli.fitting import fit
from netgrow_cli.jobs.job import Job, Options, Selection, change, opened
from netgrow_cli.surgery.change import WidthChange, prune
from netgrow_cli.surgery.plan import make_plan
from netgrow_cli.surgery.select import keeping_ties
from netgrow_cli.topology.layout import occurrences
from netgrow_cli.topology.solve import Topology
from netgrow_cli.topology.trace.inputs import parse_input
from netgrow_cli.topology.trace.source import trace_model

RESULTS = Path(__file__).with_name("rivals.jsonl")
MOST_LAYERS = 8
TOLERANCE = 1e-6

NAMES = {
    "torchvision": (
        "resnet18", "resnext50_32x4d", "regnet_x_400mf", "densenet121", "mobilenet_v3_small", "efficientnet_b0",
        "shufflenet_v2_x0_5", "convnext_tiny", "vit_b_32", "swin_t", "maxvit_t",
    ),
    "transformers": ("transformers/bert", "transformers/llama", "transformers/qwen2"),
}  # fmt: skip


class Twice(nn.Module):
    """torch.cat([x, x])."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        out: torch.Tensor = self.b(torch.cat([y, y], 1))
        return out


class Shuffled(nn.Module):
    """A channel shuffle between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        b, _, h, w = y.shape
        out: torch.Tensor = self.b(y.view(b, 2, -1, h, w).transpose(1, 2).flatten(1, 2))
        return out


class ChannelsLast(nn.Module):
    """Channels flattened behind the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x).relu().permute(0, 2, 3, 1).flatten(1))
        return out


class Unaligned(nn.Module):
    """A grouped convolution behind a concatenation that its groups straddle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(12, 6, 1, groups=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c(torch.cat([self.a(x), self.b(x)], 1).relu())
        return out


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.a, self.rnn, self.b = nn.Linear(6, 8), kind(8, 10, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.rnn(self.a(x))[0])
        return out


_IMAGE = ("float32[2,3,8,8]",)
TOYS = {
    "toy: cat([x, x])": Entry("toy: cat([x, x])", "toys", Twice, ("float32[4,6]",)),
    "toy: channel shuffle": Entry("toy: channel shuffle", "toys", Shuffled, _IMAGE),
    "toy: channels last": Entry("toy: channels last", "toys", ChannelsLast, _IMAGE),
    "toy: unaligned groups": Entry("toy: unaligned groups", "toys", Unaligned, _IMAGE),
    "toy: LSTM": Entry("toy: LSTM", "toys", functools.partial(Recurrent, nn.LSTM), ("float32[2,5,6]",)),
    "toy: GRU": Entry("toy: GRU", "toys", functools.partial(Recurrent, nn.GRU), ("float32[2,5,6]",)),
}


def compare(entry: Entry) -> dict[str, Any]:
    """What both do on one model."""
    torch.manual_seed(0)
    model = enliven(entry.make().eval())
    given = [parse_input(text) for text in entry.inputs]
    spec = trace_model(model, given, origin=entry.name, options=dict(entry.options)).text
    model = model.double()
    inputs = [_random(item) for item in given]
    theirs, ours = dict.fromkeys(("equal", "wrong", "error"), 0), dict.fromkeys(("equal", "wrong", "refused"), 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "m.yaml").write_text(spec, encoding="utf-8")
        torch.save(model.state_dict(), path / "m.pt")
        options = Options(spec=path / "m.yaml", output=path / "o.pt", force=True, verify=False, probes=4)
        with opened(path / "m.pt", options) as job:
            topology = job.topology
            layers = _layers(job, model)
        for name, width, changes in layers:
            dead = copy.deepcopy(model)
            silence(topology, dead.state_dict(), changes)
            before = _outputs(dead, inputs, entry.options)
            torch.save(dead.state_dict(), path / "m.pt")
            ours[_ours(dead, changes, path, options, inputs, entry.options, before)] += 1
            rows = _rows(topology, name, dead, changes, width)
            theirs[_theirs(copy.deepcopy(dead), name, inputs, entry.options, before, rows)] += 1
    return {"name": entry.name, "layers": len(layers), "theirs": theirs, "ours": ours}


def _layers(job: Job, model: nn.Module) -> list[tuple[str, int, list[WidthChange]]]:
    """Layers of torch with the widths that may change in this code: name, width, unit 0 of it gone.

    A grouped convolution makes two: whole groups, and what each group has one of.
    """
    topology, found = job.topology, []
    for name, module in model.named_modules():
        tensor = "weight_ih_l0" if isinstance(module, nn.RNNBase) else "weight"
        if not isinstance(module, (nn.Linear, nn.Conv2d, nn.RNNBase)) or f"{name}.{tensor}" not in topology.tensors:
            continue
        rows = topology.tensors[f"{name}.{tensor}"][0]
        for info in topology.widths.values():
            if info.frozen is None and info.size > 1 and occurrences(rows, info.width.id):
                changes = _dead(topology, info.width.id)
                if _hosted(job, changes):
                    found.append((name, info.width.id, changes))
    return found[:: max(1, len(found) // MOST_LAYERS)][:MOST_LAYERS]


def _dead(topology: Topology, width: int) -> list[WidthChange]:
    """Unit 0 of a width gone, with what must follow."""
    counts = keeping_ties(topology, {width: 1}, -1, strict=False)
    return [prune(one, topology.widths[one].size, range(count)) for one, count in counts.items()]


def _hosted(job: Job, changes: Sequence[WidthChange]) -> bool:
    """Whether the model's code needs no edit by hand: Torch-Pruning cannot make one either."""
    try:
        plan = make_plan(job.topology, job.checkpoint.tensors, changes, zero_units=True)
    except NetgrowError:
        return False
    open_ = [entry for entry in plan.code if entry.attribute is None and entry.what not in SET_BY_FIT]
    return not open_ and not plan.torn and not plan.lossy


def _ours(
    model: nn.Module, changes: Sequence[WidthChange], path: Path, options: Options, inputs: Sequence[Any],
    more: Mapping[str, Any], before: Sequence[torch.Tensor],
) -> str:  # fmt: skip
    def chosen(_: Job) -> Selection:
        return Selection(tuple(changes))

    try:
        change(path / "m.pt", "prune", chosen, options)
        found = _outputs(fit(copy.deepcopy(model), path / "o.pt"), inputs, more)
    except (NetgrowError, RuntimeError):
        return "refused"
    return "equal" if apart(found, before) < TOLERANCE else "wrong"


def _theirs(
    model: nn.Module, name: str, inputs: Sequence[Any], more: Mapping[str, Any], before: Sequence[torch.Tensor],
    rows: list[int],
) -> str:  # fmt: skip
    pruning = importlib.import_module("torch_pruning")
    module = dict(model.named_modules())[name]
    try:
        graph = pruning.DependencyGraph().build_dependency(model, example_inputs=tuple(inputs))
        function = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, function, idxs=rows)
        group.prune()
        found = _outputs(model, inputs, more)
    except Exception:  # whatever it raises
        return "error"
    return "equal" if apart(found, before) < TOLERANCE else "wrong"


def _rows(topology: Topology, name: str, model: nn.Module, changes: Sequence[WidthChange], width: int) -> list[int]:
    """Indices of a layer's outputs that are dead: in a grouped convolution a unit has one in each group."""
    gone = next(entry.dropped for entry in changes if entry.width == width)
    if isinstance(dict(model.named_modules())[name], nn.RNNBase):
        return list(gone)
    places = occurrences(topology.tensors[f"{name}.weight"][0], width)
    return sorted({n for labels in places for n, unit in enumerate(labels.tolist()) if unit in gone})


def _random(item: Any) -> torch.Tensor:
    if item.high is not None:
        return torch.randint(item.high, item.shape)
    return torch.randn(item.shape, dtype=torch.float64)


def _outputs(model: nn.Module, inputs: Sequence[Any], more: Mapping[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        result = model(*inputs, **more)
    values = result if isinstance(result, (tuple, list)) else [result]
    values = list(result.values()) if hasattr(result, "values") and not isinstance(result, torch.Tensor) else values
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]


def _child(name: str, library: str, answer: Any) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    entry = TOYS[name] if library == "toys" else catalogue(library)[name]
    try:
        answer.send(compare(entry))
    except Exception as error:
        answer.send({"name": name, "layers": 0, "theirs": {"note": "-"}, "ours": {"note": f"{type(error).__name__}"}})


def apart_with_limit(name: str, library: str, seconds: float) -> dict[str, Any]:
    """The comparison in a process of its own."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.Process(target=_child, args=(name, library, sender))
    child.start()
    row: dict[str, Any] = {
        "name": name,
        "layers": 0,
        "theirs": {"note": f"hangs ({seconds:g} s)"},
        "ours": {"note": "-"},
    }
    if receiver.poll(seconds):
        row = receiver.recv()
    child.kill()
    child.join()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=240.0)
    given = parser.parse_args()
    wanted = [("toys", name) for name in TOYS] + [(library, name) for library, names in NAMES.items() for name in names]
    with RESULTS.open("a", encoding="utf-8") as file:
        for library, name in wanted:
            if given.names and name not in given.names:
                continue
            row = apart_with_limit(name, library, given.seconds)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
