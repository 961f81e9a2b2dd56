"""Names of tensors: what wrappers put in front of them, and which of them are no parameters."""

from __future__ import annotations

from collections.abc import Sequence

from netgrow_cli.errors import CheckpointError

# DataParallel and DistributedDataParallel; torch.compile. Both at once nest in either order.
_WRAPPERS = ("module.", "_orig_mod.")

_BUFFER_ENDINGS = ("running_mean", "running_var", "num_batches_tracked")


def common_prefix(names: Sequence[str]) -> str:
    """The wrappers that every name starts with ("" if none); a name always keeps something."""
    prefix = ""
    while names:
        for wrapper in _WRAPPERS:
            longer = prefix + wrapper
            if all(name.startswith(longer) and len(name) > len(longer) for name in names):
                prefix = longer
                break
        else:
            break
    return prefix


def choose_prefix(names: Sequence[str], asked: str | None, where: str) -> str:
    """The prefix to take off: the one asked for, which then must fit every name, else the common wrappers."""
    if asked is None:
        return common_prefix(names)
    for name in names:
        if not name.startswith(asked):
            raise CheckpointError(
                f"{where}: prefix {asked!r} does not fit the tensor {name!r}; a prefix must be on every name"
            )
    return asked


def strip_wrappers(name: str) -> str:
    """One name without the wrappers in front of it."""
    return name[len(common_prefix([name])) :]


def is_buffer(name: str) -> bool:
    """True for the statistics that normalisation layers keep: in the state dict, and no parameters."""
    return name.rsplit(".", 1)[-1] in _BUFFER_ENDINGS
