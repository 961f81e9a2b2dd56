"""Finding the spec of a checkpoint: given, embedded, beside it, one that ships with netgrow, or drafted."""

from __future__ import annotations

from pathlib import Path

from netgrow_cli.checkpoint.detect import detect
from netgrow_cli.checkpoint.types import Checkpoint
from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.graph import Graph
from netgrow_cli.topology.shipped import find_shipped, require_known
from netgrow_cli.topology.spec import Spec, parse_spec, read_spec

METADATA_SPEC = "netgrow.spec"


@frozen
class Found:
    """A spec, where it came from, and what was assumed where it was drafted.

    shipped: the family that it ships for.
    """

    spec: Spec
    origin: str
    assumed: tuple[str, ...] = ()
    shipped: str | None = None

    def graph(self, checkpoint: Checkpoint) -> Graph:
        """The graph for a checkpoint. Raises SpecError."""
        graph = self.spec.graph(checkpoint.tensors)
        if self.shipped is not None:
            require_known(self.shipped, checkpoint.path, graph, checkpoint.tensors)
        return graph


def spec_paths(checkpoint: Path) -> tuple[Path, ...]:
    """Where a spec beside a checkpoint may lie, or in a folder, first found first taken."""
    if checkpoint.is_dir():
        return checkpoint / "netgrow.yaml", checkpoint.with_name(f"{checkpoint.name}.netgrow.yaml")
    return (
        checkpoint.with_name(f"{checkpoint.name}.netgrow.yaml"),
        checkpoint.with_name(f"{checkpoint.stem}.netgrow.yaml"),
        checkpoint.with_name("netgrow.yaml"),
    )


def spec_before_opening(path: Path, stated: Path | None) -> Spec | None:
    """A spec that can be had without opening the checkpoint: given, or beside it."""
    if stated is not None:
        return read_spec(stated)
    return next((read_spec(place) for place in spec_paths(path) if place.is_file()), None)


def place_of_tensors(
    path: Path, stated: Path | None, key: str | None, prefix: str | None
) -> tuple[str | None, str | None]:
    """The key and the prefix to open a checkpoint with: as asked for, else as a spec says; None to find them.

    A spec may have been written for a torch file and go with the same network as safetensors, which has no keys.
    One beside the checkpoint that cannot be read may not be needed; `find_spec` tells.
    """
    try:
        spec = spec_before_opening(path, stated)
    except SpecError:
        if stated is not None:
            raise
        spec = None
    if spec is None:
        return key, prefix
    if key is None and spec.key is not None and detect(path) not in ("safetensors", "folder"):
        key = spec.key
    return key, spec.prefix if prefix is None else prefix


def find_spec(
    checkpoint: Checkpoint, path: Path, stated: Path | None, *, draft: bool = True, activation: str = "per_unit"
) -> Found:
    """The spec, in the designed order: stated, embedded, beside, by model_type, drafted. Raises SpecError.

    draft: whether names and shapes may be used where nothing else is found.
    """
    if stated is not None:
        return Found(read_spec(stated), str(stated))
    if METADATA_SPEC in checkpoint.metadata:
        spec = parse_spec(checkpoint.metadata[METADATA_SPEC], f"{path}#{METADATA_SPEC}")
        return Found(spec, f"embedded in {path.name}")
    for place in spec_paths(path):
        if place.is_file():
            return Found(read_spec(place), str(place))
    shipped = find_shipped(checkpoint.tensors, path)
    if shipped is not None:
        spec = parse_spec(shipped.text, f"the spec that ships for {shipped.family}")
        return Found(spec, shipped.origin, shipped.assumed, shipped.family)
    if not draft:
        raise SpecError(f"{path}: no spec was given and none lies beside it; pass --spec")
    from netgrow_cli.topology.draft import draft_spec

    drafted = draft_spec(checkpoint.tensors, str(path), activation)
    return Found(parse_spec(drafted.text, f"{path} (drafted)"), "drafted from names and shapes", drafted.assumed)
