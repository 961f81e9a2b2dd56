"""Random weights that show something: no gain of zero, no statistics of zero and one; and units made dead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.topology.layout import leaves, occurrences
from netgrow_cli.topology.rule import Role
from netgrow_cli.topology.solve import Topology


def enliven(model: torch.nn.Module) -> torch.nn.Module:
    """All parameters and running statistics at random, at a scale that keeps activations of the order of one."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.is_meta or not tensor.is_floating_point():
                continue
            short = name.rpartition(".")[2]
            if tensor.ndim == 0:
                tensor.add_(0.1)
            elif tensor.ndim > 1:
                tensor.normal_(0.0, (tensor[0].numel()) ** -0.5)
            elif "bias" in short or short == "beta":
                tensor.normal_(0.0, 0.2)
            else:
                tensor.uniform_(0.75, 1.25)
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_(0.0, 0.2)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return model


def silence(topology: Topology, state: Mapping[str, torch.Tensor], changes: Sequence[WidthChange]) -> None:
    """Make the units that are to go dead: zero what produces, scales and shifts them, and what reads them.

    (Either alone would not do: a norm needs zeros, and a head of attention mixes values whatever its query is.)
    """
    gone: dict[int, set[int]] = {}  # (several changes may drop units of one width)
    for change in changes:
        gone.setdefault(change.width, set()).update(change.dropped)
    for use in topology.uses:
        if use.param == "running_var":
            continue
        made = {leaf.id for part, role in use.parts if role is not Role.DATA for leaf in leaves(part)}
        for width in made & set(gone):
            for labels in occurrences(topology.tensors[use.tensor][use.axis], width):
                places = [n for n, unit in enumerate(labels.tolist()) if unit in gone[width]]
                state[use.tensor].index_fill_(use.axis, torch.tensor(places), 0.0)
