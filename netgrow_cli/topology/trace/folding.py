"""Values of a graph that depend on no input and no tensor of the checkpoint: computed once, while tracing.

Masks, positions and rotary tables are built by dozens of operations from the sizes of the input. What they give is a
table of numbers, which the spec states; along the batch, and where all its numbers are alike, once.
"""

from __future__ import annotations

from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.topology.trace.reading import as_list, operation

MOST_NUMBERS = 1 << 14
"""Larger tables stay operations in the spec, which has to be read by people."""

_MOST_COMPUTED = 1 << 26


@frozen
class Table:
    """A tensor of numbers, with size 1 along axes where it is alike, and the sizes that these are repeated to."""

    values: Any
    sizes: tuple[int, ...]

    @property
    def repeated(self) -> bool:
        """Whether there are such axes."""
        return tuple(self.values.shape) != self.sizes


class Folded:
    """The values of one graph's nodes that are numbers only."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}

    def give(self, node: Any, value: Any) -> None:
        """A value that is known from elsewhere: a constant of the program, or several values of another graph."""
        if isinstance(value, list):
            self._values[node] = value
        else:
            self._values[node] = value.detach().double() if value.is_floating_point() else value.detach()

    def compute(self, node: Any) -> bool:
        """Compute a node from its operands; False where one of them is no number, or it draws random ones."""
        import torch

        operands = [part for part in node.all_input_nodes if part.op != "get_attr"]
        tags = getattr(node.target, "tags", ())
        if len(operands) != len(node.all_input_nodes) or not all(part in self._values for part in operands):
            return False
        if torch.Tag.nondeterministic_seeded in tags or _numbers(node) > _MOST_COMPUTED:
            return False
        if operation(node.target) == "getitem":
            self._values[node] = self._values[node.args[0]][node.args[1]]
            return True
        if not hasattr(node.target, "_schema"):
            return False
        try:
            with torch.no_grad():
                arguments = torch.utils._pytree.tree_map(self._real, (list(node.args), dict(node.kwargs)))
                self._values[node] = node.target(*arguments[0], **arguments[1])
        except (RuntimeError, TypeError, NotImplementedError):
            return False
        return True

    def _real(self, value: Any) -> Any:
        """An argument: nodes by their values, on the processor, in float64 where they are no whole numbers."""
        import torch

        if hasattr(value, "op") and hasattr(value, "meta"):
            found = self._values[value]
            return found.clone() if isinstance(found, torch.Tensor) else found
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value

    def value(self, node: Any) -> Any:
        """The numbers, None where they are not known."""
        import torch

        found = self._values.get(node)
        return found if isinstance(found, torch.Tensor) else None

    def is_empty(self, node: Any) -> bool:
        """Whether there are no numbers in it: code cuts ranges of nothing where windows are not moved."""
        found = self.value(node)
        return found is not None and found.numel() == 0

    def table(self, node: Any, batch: int | None) -> Table | None:
        """What the spec states of a node; None where that would be too much, or it is none of these."""
        found = self.value(node)
        if found is None or 0 in found.shape:
            return None
        sizes, one = tuple(found.shape), bool((found == found.flatten()[0]).all())
        for axis, size in enumerate(sizes):
            first = found.narrow(axis, 0, 1)
            if size > 1 and (one or (batch is not None and size % batch == 0 and bool((found == first).all()))):
                found = first
        return Table(found, sizes) if found.numel() <= MOST_NUMBERS else None


def _numbers(node: Any) -> int:
    return sum(int(part.numel()) for part in as_list(node.meta.get("val")) if hasattr(part, "numel"))


def is_causal(mask: Any) -> bool:
    """Whether a mask lets each position see those up to itself, and no others."""
    import torch

    if mask.dim() < 2 or mask.shape[-1] != mask.shape[-2]:
        return False
    seen = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    if mask.dtype == torch.bool:
        return bool((mask == seen).all())
    return bool(((mask == 0) == seen).all() and (mask[..., ~seen] <= -1e4).all())
