"""Operations that see a whole width, by change: exact, exact with a compensation, lossy, or refused.

| operation           | expand           | split              | prune           | recycle |
| ------------------- | ---------------- | ------------------ | --------------- | ------- |
| rms_norm            | zero units *     | all equally often  | zero units *    | refused |
| layer_norm          | mean units *     | all equally often  | lossy           | refused |
| ... over more axes  | refused          | all equally often  | lossy           | refused |
| group_norm, a group | refused          | all equally often  | lossy           | refused |
| normalize           | zero units       | refused            | zero units      | refused |
| mean                | refused          | all equally often  | lossy           | refused |
| amax, amin          | refused          | exact              | lossy           | refused |
| contraction         | exact            | exact              | zero units      | zero    |
| attention, scaled   | exact *          | exact *            | zero units *    | zero    |
| sum, softmax, ...   | refused          | refused            | lossy           | refused |
| weight_norm         | zero columns     | refused            | lossy           | refused |
| ... over made units | refused          | refused            | lossy           | refused |
| standardised weights| refused          | refused            | lossy           | refused |

* with a compensation: gain times s, eps times s^2,
s = sqrt(d / D) where the normalised axis goes from d to D units. A permutation is always exact.
Products of activations (queries and keys) sum over a width that is made on two sides; one of them carries it, as
columns that read it would (`carriers`), times 1 / s where the sum is divided by the root of its size. Units are zero
there if they are so on either side, and a unit that is zero can be recycled.
Derivation for rms_norm: zero units leave the sum of squares S; g' / sqrt(S/D + eps') = g / sqrt(S/d + eps)
holds for all S with g' = g sqrt(d/D) and eps' = eps d/D. For layer_norm, units that carry the mean leave the
mean and the sum of squared deviations as they are, and the same follows.
The last three see weights, not units: weight_norm divides by a norm over what a layer reads (or makes), which columns
of zeros leave alone; a share of a column does not, nor does a unit that is zero. Standardised weights lose their mean
and are divided by their deviation, which any column has a part in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.change import WidthChange
from netgrow_cli.surgery.feeds import summed_axes, sums
from netgrow_cli.surgery.fresh import Fill
from netgrow_cli.topology.layout import Concat, Fixed, Layout, Width, leaves
from netgrow_cli.topology.ops.attention import follows_size
from netgrow_cli.topology.ops.derived_weights import MADE, READ, STANDARDIZED
from netgrow_cli.topology.solve import Effect, Topology

_RESCALED = ("rms_norm", "layer_norm")

_OF_WEIGHTS = {
    READ: "divides its weights by their norm over all that it reads",
    MADE: "divides its weights by a norm that takes in all units that it makes",
    STANDARDIZED: "standardises its weights over all that it reads (less their mean, over their deviation)",
}


@frozen
class Verdict:
    """What an effect says to a change.

    answer: "exact", "compensate" (gain and eps follow the size), "lossy" or "refused"; why: for the last two.
    fill: how fresh units must be made, None where any way will do. carried: some rows must carry the change.
    zero_columns: what reads fresh units must be zero.
    """

    answer: str
    why: str = ""
    fill: Fill | None = None
    instead: str = ""
    carried: bool = False
    zero_columns: bool = False


def judge(
    topology: Topology, effect: Effect, change: WidthChange, zero_units: bool, together: Mapping[int, WidthChange]
) -> Verdict:
    """The table's entry. zero_units: all units that are dropped are zero where the operation reads them.

    together: all changes that are made at once, by width; what sees several widths is the same where all are split.
    """
    name = f"{effect.kind} in {effect.node!r}"
    if change.kind == "permute":
        return Verdict("exact")
    if effect.kind in _OF_WEIGHTS:
        return _of_weights(topology, effect, change)
    if sums(effect) and len({operand for operand, _ in summed_axes(topology, effect)}) > 1:
        return _sum_of_products(topology, effect, change, name, zero_units)
    if change.kind == "expand":
        return _expand(topology, effect, name)
    if change.kind == "split":
        return _split(effect, name, together)
    if change.kind == "merge":
        return _merge(topology, effect, change, name)
    if change.kind == "prune":
        return _prune(topology, effect, name, zero_units)
    return Verdict(
        "refused",
        f"{name} sees the whole width; a unit that becomes another changes all of its outputs",
        instead="no other command recycles it exactly",
    )


def _sum_of_products(topology: Topology, effect: Effect, change: WidthChange, name: str, zero_units: bool) -> Verdict:
    node = topology.graph.node(effect.node)
    scaled = follows_size(node.op, node.attrs)
    if change.kind in ("expand", "split", "merge"):
        return Verdict("compensate" if scaled else "exact", carried=True)
    if change.kind == "recycle":
        if zero_units:
            return Verdict("exact", carried=True)
        return Verdict(
            "refused",
            f"{name} sums over it, and its dead units are not all zero on one of the two sides",
            instead="`prune` with --allow-drift X",
        )
    if zero_units:
        return Verdict("compensate" if scaled else "exact", carried=scaled)
    why = f"{name} sums over the whole width, so that pruning units that are zero on neither side is not exact"
    return Verdict("lossy", why, instead="`--allow-drift X`", carried=scaled)


def _of_weights(topology: Topology, effect: Effect, change: WidthChange) -> Verdict:
    """A width that the weights of a layer are computed over."""
    if change.kind == "expand" and effect.kind == READ:
        return Verdict("exact", zero_columns=True)
    lossy = change.kind in ("prune", "merge")
    what = {"expand": "new units", "split": "copies of units", "recycle": "a unit that becomes another"}.get(
        change.kind, "fewer units"
    )
    verb = "changes" if change.kind == "recycle" else "change"
    return Verdict(
        "lossy" if lossy else "refused",
        f"{topology.graph.node(effect.node).op} {effect.node!r} {_OF_WEIGHTS[effect.kind]}, so that {what} {verb} all "
        "of them",
        instead="`--allow-drift X`" if lossy else _instead(effect, change),
    )


def _instead(effect: Effect, change: WidthChange) -> str:
    return (
        "expand"
        if effect.kind == READ and change.kind == "split"
        else "a layer that it does not " + ("make" if effect.kind == MADE else "read")
    )


def _has_gain(topology: Topology, effect: Effect) -> bool:
    return "weight" in topology.graph.node(effect.node).params


def _expand(topology: Topology, effect: Effect, name: str) -> Verdict:
    if effect.kind in _RESCALED and not _has_gain(topology, effect):
        return Verdict(
            "refused",
            f"{name} divides by what all units are, and has no gain that could make up for new ones",
            instead="`split` with all units keeps it exact",
        )
    if effect.kind == "rms_norm":
        return Verdict("compensate", fill="zero")
    if effect.kind == "layer_norm":
        if not isinstance(effect.layout, Width):
            return Verdict(
                "refused",
                f"{name} normalises {topology.text(effect.layout)} together; units of one part move the mean",
                instead="`split --units all` of all parts, each a --layer or --width",
            )
        return Verdict("compensate", fill="mean")
    if effect.kind == "normalize":
        return Verdict("exact", fill="zero")
    if effect.kind == "group_norm":
        instead = f"whole new groups (see `netgrow inspect` for the width of the groups of {effect.node!r})"
    else:
        instead = "`split` with all units" if effect.kind in ("mean", "layer_norm") else "a layer that it does not read"
    return Verdict("refused", f"{name} sees all units at once, and new ones would change it", instead=instead)


def _merge(topology: Topology, effect: Effect, change: WidthChange, name: str) -> Verdict:
    """What splitting does not change, merging does not."""
    others = {leaf.id for leaf in leaves(effect.layout)} - {change.width}
    if _weighs_all(effect) and change.evenly_merged and not others:
        return Verdict("exact")
    if effect.kind in ("amax", "amin") and all(factor == 1.0 for _, _, factor in change.absorbed):
        return Verdict("exact")
    return _prune(topology, effect, name, zero_units=False)


def _weighs_all(effect: Effect) -> bool:
    """Whether it is the same for units that are all there equally often."""
    return effect.kind in ("mean", "group_norm") or effect.kind.startswith(("layer_norm", "rms_norm"))


def _split(effect: Effect, name: str, together: Mapping[int, WidthChange]) -> Verdict:
    if effect.kind in ("amax", "amin"):
        return Verdict("exact")
    if _weighs_all(effect):
        if _repeats(effect.layout, together) is not None:
            return Verdict("exact")
        alone = isinstance(effect.layout, Width)
        return Verdict(
            "refused",
            f"{name} weighs all units equally, so copies of some change it",
            instead="`--units all`, which duplicates every unit"
            if alone
            else "`--units all` of all parts that it sees, each a --layer or --width",
        )
    return Verdict(
        "refused",
        f"{name} sees all units at once, and copies change it",
        instead="a layer that it does not read",
    )


def _repeats(layout: Layout, together: Mapping[int, WidthChange]) -> int | None:
    """How often every index of a layout is there afterwards, if all are there equally often."""
    if isinstance(layout, Width):
        return together[layout.id].multiple if layout.id in together else 1
    if isinstance(layout, Fixed):
        return 1
    counts = [_repeats(part, together) for part in (layout.parts if isinstance(layout, Concat) else layout.factors)]
    if None in counts or (isinstance(layout, Concat) and len(set(counts)) > 1):
        return None
    return counts[0] if isinstance(layout, Concat) else math.prod(count for count in counts if count is not None)


def _prune(topology: Topology, effect: Effect, name: str, zero_units: bool) -> Verdict:
    if zero_units and effect.kind == "normalize":
        return Verdict("exact")
    if zero_units and effect.kind == "rms_norm" and _has_gain(topology, effect):
        return Verdict("compensate")
    return Verdict(
        "lossy", f"{name} sees the whole width, so that pruning it is not exact", instead="`--allow-drift X`"
    )
