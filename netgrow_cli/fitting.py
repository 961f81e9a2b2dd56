"""Fit a live model to a checkpoint of other widths: the answer to 'size mismatch for fc1.weight'."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgrow_cli.checkpoint import Checkpoint, checkpoint_path, open_checkpoint
from netgrow_cli.errors import CheckpointError, NetgrowError, UsageError
from netgrow_cli.topology.discover import find_spec, place_of_tensors
from netgrow_cli.topology.layout import leaves
from netgrow_cli.topology.ops.attention import summed_size
from netgrow_cli.topology.ops.derived_weights import module_of
from netgrow_cli.topology.solve import Site, Topology, solve

if TYPE_CHECKING:
    import torch


def fit(
    model: torch.nn.Module,
    path: str | Path,
    *,
    spec: str | Path | None = None,
    key: str | None = None,
    prefix: str | None = None,
) -> torch.nn.Module:
    """Resize a model's parameters in place to a checkpoint's shapes, and load it.

    Sizes that modules keep as attributes follow: those of torch's own layers (in_features, groups,
    normalized_shape, eps, ...) from the shapes and from the spec that goes with the checkpoint, any others (num_heads,
    split sizes, ...) from a traced spec, which names them. Sizes in the model's own code cannot be reached;
    `model_code` in a change's report lists them. Returns the model. Make a new optimizer afterwards: parameters
    that changed their shape are new objects.

    Raises CheckpointError where names do not match, UsageError where a size cannot be told or one number of the model
    would have to be two.
    """
    path = checkpoint_path(Path(path))
    stated = Path(spec) if spec is not None else None
    key, prefix = place_of_tensors(path, stated, key, prefix)
    with open_checkpoint(path, key=key, prefix=prefix) as checkpoint:
        tied = _left_out(model, checkpoint)
        _check_names(model, checkpoint, tied)
        topology = _topology(checkpoint, path, stated)
        settings = _settings(topology) if topology is not None else {}
        attributes = attribute_values(topology) if topology is not None else {}
        _resize(model, checkpoint, tied)
        for name, module in model.named_modules():
            _adjust(name, module, settings)
        modules = dict(model.named_modules())
        for place, value in attributes.items():
            _set(modules, place, value)
        for module in model.modules():
            _multihead(module)
        state: Any = collections.OrderedDict((name, checkpoint.read(name)) for name in checkpoint.tensors)
        state |= {name: state[first] for name, first in tied.items()}
        # (Modules with versions of their own ask for the one that they were saved by.)
        state._metadata = getattr(model.state_dict(), "_metadata", {})
        model.load_state_dict(state, strict=True)
        for module in model.modules():
            _old_weight_norm(module)
    return model


def _left_out(model: torch.nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Names that a file of the Hugging Face kind leaves out, by the name under which the same parameter is there."""
    values = model.state_dict(keep_vars=True)
    found = {id(value): name for name, value in values.items() if name in checkpoint.tensors}
    absent = [name for name in values if name not in checkpoint.tensors]
    return {name: found[id(values[name])] for name in absent if id(values[name]) in found}


def _check_names(model: torch.nn.Module, checkpoint: Checkpoint, tied: Mapping[str, str]) -> None:
    expected, found = set(model.state_dict()) - set(tied), set(checkpoint.tensors)
    for names, what in ((expected - found, "the checkpoint lacks"), (found - expected, "the model lacks")):
        if names:
            shown = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
            raise CheckpointError(f"{checkpoint.path}: {what} {shown}; is this the model that wrote it?")


def _resize(model: torch.nn.Module, checkpoint: Checkpoint, tied: Mapping[str, str]) -> None:
    """New parameters and buffers where shapes differ; what was shared stays shared."""
    import torch

    made: dict[int, Any] = {}
    for module_name, module in model.named_modules():
        for store in (module._parameters, module._buffers):
            for short, old in list(store.items()):
                name = f"{module_name}.{short}" if module_name else short
                info = checkpoint.tensors.get(tied.get(name, name))
                if old is None or info is None or tuple(old.shape) == info.shape:
                    continue
                if id(old) not in made:
                    new = torch.empty(info.shape, dtype=old.dtype, device=old.device)
                    is_parameter = isinstance(old, torch.nn.Parameter)
                    made[id(old)] = torch.nn.Parameter(new, old.requires_grad) if is_parameter else new
                store[short] = made[id(old)]


# -- what modules keep beside their parameters ---------------------------------------------------------


def _topology(checkpoint: Checkpoint, path: Path, stated: Path | None) -> Topology | None:
    """The checkpoint's own spec, solved; None where it has none."""
    try:
        found = find_spec(checkpoint, path, stated, draft=False)
    except NetgrowError:
        if stated is not None:
            raise
        return None
    return solve(found.graph(checkpoint), checkpoint.tensors)


def attribute_values(topology: Topology) -> dict[str, Any]:
    """By path (`blocks.0.attn.num_heads`), the numbers that modules keep, as a traced spec names them.

    Raises UsageError where one would have to be two.
    """
    values: dict[str, Any] = {}
    for site in topology.sites:
        stated = topology.graph.node(site.node).code.get(site.what)
        if (
            stated is None
            or stated.startswith("= ")
            or site.ranged
            or site.what == "normalized_shape"
            or not _follows(topology, site)
        ):
            continue
        times, _, place = stated.rpartition(" * ")
        size = site.span.size // int(times or 1)
        if values.setdefault(place, size) != size:
            raise UsageError(
                f"the model's code has one number, {place}, where the checkpoint needs {values[place]} and "
                f"{size} ({site.source or site.node}); change both widths alike, or the code"
            )
    for node in topology.graph.nodes:
        if "normalized_shape" in node.code:
            shape = topology.value(node.inputs[0]).shape
            values[node.code["normalized_shape"]] = shape[len(shape) - node.attrs.get("dims", 1) :]
        if "eps" in node.code:
            values[node.code["eps"]] = node.attrs["eps"]
        for what, place in node.code.items():
            if what.startswith("size^"):
                shape = topology.value(node.inputs[0]).shape
                values[place] = summed_size(node.op, node.attrs, shape) ** float(what.removeprefix("size^"))
    return values


def _follows(topology: Topology, site: Site) -> bool:
    """Whether a number follows a change: not that of an axis that no tensor has, the batch or positions.

    (An axis of one unit is a literal size by now.)
    """
    users = [topology.widths[leaf.id] for leaf in leaves(site.span)]
    return any(info.producers or info.consumers for info in users) or (not users and site.span.size == 1)


def _set(modules: Mapping[str, Any], place: str, value: Any) -> None:
    """Set an attribute that the model has; a spec may come from another version of its code.

    A buffer of one number repeated, which is in no checkpoint, is repeated that often. `bias_shape[2]` is one entry.
    """
    path, _, name = place.rpartition(".")
    name, _, entry = name.partition("[")
    module = modules.get(path)
    held = getattr(module, name, None)
    if module is None or held is None:
        return
    if entry and isinstance(held, (tuple, list)):
        held = list(held)
        held[int(entry[:-1])] = value
        setattr(module, name, type(getattr(module, name))(held))
    elif name in module._buffers and held.dim() == 1:
        module._buffers[name] = held[:1].repeat(int(value))
    elif isinstance(held, (int, float, tuple)):
        setattr(module, name, value)


def _multihead(module: Any) -> None:
    """What torch's attention keeps beside the two numbers that its code reads."""
    import torch

    if isinstance(module, torch.nn.MultiheadAttention):
        module.head_dim = module.embed_dim // module.num_heads
        if module._qkv_same_embed_dim:
            module.kdim = module.vdim = module.embed_dim


def _old_weight_norm(module: Any) -> None:
    """The weight that torch's old weight_norm computes, which is of the old sizes until the next run."""
    import torch
    from torch.nn.utils.weight_norm import WeightNorm

    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            with torch.no_grad():
                setattr(module, hook.name, hook.compute_weight(module))


def _settings(topology: Topology) -> dict[str, dict[str, Any]]:
    """By module name, the settings that the checkpoint's own spec states: eps, groups.

    A norm without parameters is found by its layer's name, and its shape is what it normalises.
    """
    settings: dict[str, dict[str, Any]] = {}
    for node in topology.graph.nodes:
        tensor = node.params.get("weight")
        if tensor is not None:
            module = module_of(tensor)
            settings[module] = {key: node.attrs[key] for key in ("eps", "groups") if key in node.attrs}
            if "conv" in node.op:
                settings[module]["groups"] = _groups(topology, node.name)
        elif node.op in ("layer_norm", "rms_norm", "group_norm"):
            sizes = topology.value(node.inputs[0]).shape
            count = node.attrs.get("dims", 1)
            shape = sizes[1:2] if node.op == "group_norm" else sizes[len(sizes) - count :]
            settings[node.name] = {"shape": shape, **{key: node.attrs[key] for key in ("groups",) if key in node.attrs}}
    return settings


def _groups(topology: Topology, name: str) -> int:
    node = topology.graph.node(name)
    weight = topology.tensors[node.params["weight"]]
    if "conv_transpose" in node.op:
        return int(node.attrs.get("groups") or 1)
    channels: int = topology.value(node.inputs[0]).axes[1].size
    return channels // weight[1].size


def _adjust(name: str, module: torch.nn.Module, settings: Mapping[str, Mapping[str, Any]]) -> None:
    import torch

    if isinstance(module, torch.nn.RNNBase):
        _recurrent(module)
        return
    if isinstance(module, torch.nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
        return
    # (The old weight_norm computes the weight before each run; until then it is that of the old sizes.)
    weight = getattr(module, "weight_v", getattr(module, "weight", None))
    stated = settings.get(name, {})
    shape = tuple(weight.shape) if isinstance(weight, torch.Tensor) else stated.get("shape")
    if shape is None:
        return
    for kind, adjust in _by_kind().items():
        if isinstance(module, kind):
            adjust(name, module, shape, stated)
            return


Adjust = Callable[[str, Any, tuple[int, ...], Mapping[str, Any]], None]


def _by_kind() -> dict[Any, Adjust]:
    import torch.nn as nn

    norms = nn.modules.batchnorm._NormBase
    kinds: dict[Any, Adjust] = {
        nn.Linear: _linear,
        nn.Embedding: _embedding,
        nn.modules.conv._ConvTransposeNd: _transposed,
        nn.modules.conv._ConvNd: _convolution,
        norms: _channels,
        nn.GroupNorm: _group_norm,
        nn.LayerNorm: _whole_shape,
        nn.PReLU: _slopes,
    }
    if hasattr(nn, "RMSNorm"):
        kinds[nn.RMSNorm] = _whole_shape
    return kinds


def _linear(_: str, module: Any, shape: tuple[int, ...], __: Mapping[str, Any]) -> None:
    module.out_features, module.in_features = shape


def _embedding(_: str, module: Any, shape: tuple[int, ...], __: Mapping[str, Any]) -> None:
    module.num_embeddings, module.embedding_dim = shape


def _channels(_: str, module: Any, shape: tuple[int, ...], settings: Mapping[str, Any]) -> None:
    module.num_features = shape[0]
    module.eps = settings.get("eps", module.eps)


def _whole_shape(_: str, module: Any, shape: tuple[int, ...], settings: Mapping[str, Any]) -> None:
    module.normalized_shape = shape
    module.eps = settings.get("eps", module.eps)


def _slopes(_: str, module: Any, shape: tuple[int, ...], __: Mapping[str, Any]) -> None:
    module.num_parameters = shape[0]


def _group_norm(name: str, module: Any, shape: tuple[int, ...], settings: Mapping[str, Any]) -> None:
    stated = settings.get("groups", module.num_groups)
    if isinstance(stated, int):
        module.num_groups = stated
    module.num_channels = shape[0]
    module.eps = settings.get("eps", module.eps)
    if shape[0] % module.num_groups:
        raise UsageError(f"{name}: {shape[0]} channels in {module.num_groups} groups; pass the checkpoint's spec")


def _convolution(name: str, module: Any, shape: tuple[int, ...], settings: Mapping[str, Any]) -> None:
    groups = settings.get("groups")
    if groups is None:
        groups = _guess_groups(name, module, shape)
    module.groups, module.out_channels, module.in_channels = groups, shape[0], shape[1] * groups


def _guess_groups(name: str, module: Any, shape: tuple[int, ...]) -> int:
    """Without a spec: depthwise stays depthwise; otherwise groups change only if channels per group cannot."""
    groups, reads, makes = module.groups, module.in_channels // module.groups, module.out_channels // module.groups
    if groups == 1 or (shape[0] == module.out_channels):
        return int(groups)
    if reads == 1 == shape[1]:
        return int(shape[0] // makes)
    raise UsageError(
        f"{name}: {shape[0]} channels out of a grouped convolution (was {module.out_channels} in {groups} groups) "
        "leave open how many groups; pass the checkpoint's spec: fit(model, path, spec=...)"
    )


def _transposed(_: str, module: Any, shape: tuple[int, ...], settings: Mapping[str, Any]) -> None:
    module.groups = settings.get("groups", module.groups)
    module.in_channels, module.out_channels = shape[0], shape[1] * module.groups


def _recurrent(module: Any) -> None:
    """Sizes that a recurrent layer keeps, and its own list of its weights."""
    rows, said = module.weight_hh_l0.shape
    module.input_size = module.weight_ih_l0.shape[1]
    module.hidden_size = rows // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    module.proj_size = said if module.proj_size else 0
    module._init_flat_weights()
