"""The permutation certificate: the units of every width in a random order must leave the outputs unchanged.

It tests what was inferred from a spec against the real numbers without changing a shape: an axis that is missing
from a width, or wrongly in it, shows. Whether the spec is the model, it cannot tell, for it runs the spec: a residual
that the spec forgot is absent from both sides. Only the model's own code tells that (`real_model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from netgrow_cli.frozen import frozen
from netgrow_cli.proof.equivalence import Equivalence, compare
from netgrow_cli.proof.probes import Probes
from netgrow_cli.surgery.change import permute
from netgrow_cli.surgery.edit import apply_edit
from netgrow_cli.surgery.plan import make_plan
from netgrow_cli.topology.network import Network
from netgrow_cli.topology.solve import WidthInfo


@frozen
class Certificate:
    """The outcome: how many widths were permuted, and which ones change the outputs when permuted alone."""

    widths: int
    equivalence: Equivalence
    culprits: tuple[str, ...]


def certify(network: Network, probes: Probes, *, seed: int, dtype: str, tolerance: float) -> Certificate:
    """Permute all widths that may change; where the outputs change, find the widths that do it alone."""
    topology = network.solved()
    free = [info for info in topology.widths.values() if info.frozen is None]
    together = compare(network, permuted(network, free, seed), probes, dtype=dtype, tolerance=tolerance)
    culprits: list[str] = []
    if not together.equal:
        for info in free:
            alone = compare(network, permuted(network, [info], seed), probes, dtype=dtype, tolerance=tolerance)
            if not alone.equal:
                culprits.append(info.name)
    return Certificate(len(free), together, tuple(culprits))


def permuted(network: Network, widths: Sequence[WidthInfo], seed: int) -> Network:
    """The network with the units of these widths in a random order."""
    generator = np.random.default_rng(seed)
    topology = network.solved()
    changes = [permute(info.width.id, generator.permutation(info.size).tolist()) for info in widths]
    plan = make_plan(topology, network.infos, changes)

    def read(name: str) -> Any:
        tensor = network.read(name)
        edit = plan.edits.get(topology.aliases[name])
        return tensor if edit is None else apply_edit(tensor, edit, seed)

    return network.reading(read)
