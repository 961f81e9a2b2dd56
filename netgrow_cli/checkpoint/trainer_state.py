"""The optimizer beside a Hugging Face model: which tensor of the folder each parameter id of `optimizer.pt` is.

A safetensors file is in alphabetical order, which says nothing about the order of the model's parameters. So ids are
told by names where the optimizer has them, by sizes that are there once only, and else by the model's own code: built
without memory by transformers, in the groups that the Trainer and its example scripts make.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgrow_cli.checkpoint.optimizer import (
    OptimizerState,
    ParameterId,
    ambiguous,
    match_parameters,
    shapes_of,
)
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import CheckpointError, first_line

if TYPE_CHECKING:
    import torch

Groups = list[list[str]]

# Names that have no weight decay: in transformers 5, before it, and in its example scripts.
_PATTERNS = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
_SCRIPTS = (("bias", "LayerNorm.weight"), ("bias", "layer_norm.weight"), ("bias",))


def match_trainer(optimizer: OptimizerState, tensors: Mapping[str, TensorInfo], folder: Path) -> dict[ParameterId, str]:
    """Which tensor of the folder each id is. Raises CheckpointError where that cannot be told."""
    if optimizer.named or any(isinstance(identity, str) for identity in optimizer.ids):
        return match_parameters(optimizer, tensors)
    alone = _by_lone_size(optimizer, tensors)
    if alone is not None:
        return alone
    model = _model(optimizer, folder)
    if odd := [name for name, _ in model.named_parameters() if name not in tensors]:
        raise ambiguous(optimizer, f"the model's code has a parameter {odd[0]!r}, and the folder has no such tensor")
    found: list[dict[ParameterId, str]] = []
    for groups in _groupings(model):
        matched = _fitting(optimizer, groups, {name: info.shape for name, info in tensors.items()})
        if matched is not None and matched not in found:
            found.append(matched)
    if not found:
        sizes = ", ".join(str(len(group["params"])) for group in optimizer.groups)
        raise ambiguous(optimizer, f"its groups of {sizes} parameters are none that the Trainer makes of this model")
    if len(found) > 1:
        identity = next(i for i in optimizer.ids if len({matched[i] for matched in found}) > 1)
        names = " or ".join(dict.fromkeys(matched[identity] for matched in found))
        raise ambiguous(optimizer, f"parameter {identity} can be {names}")
    return found[0]


def _by_lone_size(optimizer: OptimizerState, tensors: Mapping[str, TensorInfo]) -> dict[ParameterId, str] | None:
    """By sizes, where every parameter with a state has one that no other tensor has."""
    matched: dict[ParameterId, str] = {}
    shapes = shapes_of(optimizer)
    for identity, shape in shapes.items():
        names = [name for name, info in tensors.items() if info.shape == shape]
        if shape is None and not optimizer.state.get(identity):
            continue
        if len(names) != 1 or list(shapes.values()).count(shape) != 1:
            return None
        matched[identity] = names[0]
    return matched if matched else None


def _model(optimizer: OptimizerState, folder: Path) -> torch.nn.Module:
    """The model of a folder's `config.json`, without memory; no code of the folder's is run."""
    import torch

    try:
        import transformers
    except ImportError:
        raise ambiguous(
            optimizer, "sizes alone do not say, and the order of the model's parameters needs transformers installed"
        ) from None
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        name = (config.architectures or [""])[0]
        kind = getattr(transformers, name, None)
        if kind is None:
            raise ambiguous(optimizer, f"transformers has no {name or 'architecture that config.json names'}")
        with torch.device("meta"):
            model = kind(config)
        model.tie_weights()
    except CheckpointError:
        raise
    except Exception as error:  # a configuration of another version fails in any way
        raise ambiguous(optimizer, f"transformers cannot build the model ({first_line(error)})") from None
    found: torch.nn.Module = model
    return found


def _groupings(model: torch.nn.Module) -> Iterator[Groups]:
    """Parameters in the groups of the Trainer, then and now, and of common scripts; last all of them in one."""
    import torch

    names = [name for name, _ in model.named_parameters()]
    norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)]
    inside = {name for name in names if any(name.startswith(f"{norm}.") for norm in norms)}

    def named(words: Sequence[str]) -> Callable[[str], bool]:
        return lambda name: any(word in name for word in words)

    rules: list[Callable[[str], bool]] = [
        lambda name: name in inside or any(re.search(pattern, name.lower()) for pattern in _PATTERNS),
        lambda name: name in inside or "bias" in name,
        *map(named, _SCRIPTS),
        lambda name: model.get_parameter(name).dim() < 2,
    ]
    for rule in rules:
        groups = [[name for name in names if not rule(name)], [name for name in names if rule(name)]]
        yield groups
        yield [group for group in groups if group]
    yield [names]


def _fitting(
    optimizer: OptimizerState, groups: Groups, sizes: Mapping[str, tuple[int, ...]]
) -> dict[ParameterId, str] | None:
    """Ids by names, where the groups are as large and every state has its parameter's shape."""
    listed = [list(group["params"]) for group in optimizer.groups]
    if [len(ids) for ids in listed] != [len(group) for group in groups]:
        return None
    pairs = zip(itertools.chain(*listed), itertools.chain(*groups), strict=True)
    matched: dict[ParameterId, str] = dict(pairs)
    shapes: Mapping[Any, Any] = shapes_of(optimizer)
    if any(shapes[identity] not in (None, sizes[name]) for identity, name in matched.items()):
        return None
    return matched
