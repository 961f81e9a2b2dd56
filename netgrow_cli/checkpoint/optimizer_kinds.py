"""What optimizers keep for each parameter, and how it grows with the parameter's gradient.

A new optimizer is one entry in `FAMILIES`, where each of its numbers belongs to one number of the parameter; what
mixes them (factors, blocks, projections) cannot follow a change of width and is named in `_WHY`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from netgrow_cli.frozen import frozen


@frozen
class Moment:
    """How an entry follows when its parameter is edited.

    power: the power of the gradient by which it grows: the share a of a copy scales it by a ** power.
    size: the power of the parameter's own size by which it grows, where a parameter is rescaled.
    fresh: whether fresh entries start at zero, or at the mean of the tensor's old ones.
    average: it is an average of the parameter itself and is edited as that.
    """

    power: int
    size: int = 0
    fresh: Literal["zero", "mean"] = "zero"
    average: bool = False


GRADIENT = Moment(1)
SQUARE = Moment(2, fresh="mean")

FAMILIES: dict[str, dict[str, Moment]] = {
    # Adam, AdamW, NAdam, RAdam, AMSGrad, SparseAdam, LAMB
    "adam": {"exp_avg": GRADIENT, "exp_avg_sq": SQUARE, "max_exp_avg_sq": SQUARE},
    "sgd": {"momentum_buffer": GRADIENT},
    # RMSprop's momentum sums steps, g / sqrt(v), which do not grow with the gradient.
    "rmsprop": {"square_avg": SQUARE, "grad_avg": GRADIENT, "momentum_buffer": Moment(0)},
    "adagrad": {"sum": SQUARE},
    # A mean of squared steps, and a step is g sqrt(delta / v).
    "adadelta": {"square_avg": SQUARE, "acc_delta": Moment(0, size=2, fresh="mean")},
    "adamax": {"exp_avg": GRADIENT, "exp_inf": Moment(1, fresh="mean")},
    "lion": {"exp_avg": GRADIENT},
    "asgd": {"ax": Moment(0, average=True)},
    "rprop": {"prev": GRADIENT, "step_size": Moment(0, fresh="mean")},
}
_REQUIRED = {
    "adam": {"exp_avg", "exp_avg_sq"},
    "sgd": {"momentum_buffer"},
    "rmsprop": {"square_avg"},
    "adagrad": {"sum"},
    "adadelta": {"square_avg", "acc_delta"},
    "adamax": {"exp_avg", "exp_inf"},
    "lion": {"exp_avg"},
    "asgd": {"ax"},
    "rprop": {"prev", "step_size"},
}
# Settings in an optimizer's groups that tell it before it keeps anything, the first that fits.
_BY_SETTINGS = (
    ("adam", {"betas", "amsgrad"}),
    ("sgd", {"nesterov", "dampening"}),
    ("rmsprop", {"alpha", "centered"}),
    ("adagrad", {"lr_decay", "initial_accumulator_value"}),
    ("adadelta", {"rho", "eps", "lr", "maximize"}),
    ("asgd", {"lambd", "t0"}),
    ("rprop", {"etas", "step_sizes"}),
    ("adam", {"betas"}),
    ("sgd", {"nesterov"}),
)
_ORTHOGONAL = {"ns_steps", "ns_coefficients", "use_muon"}
_WHY = (
    (
        {"state1", "state2", "qmap1", "absmax1", "absmax"},
        "8-bit state (bitsandbytes), whose blocks run across units",
    ),
    (
        {"exp_avg_sq_row", "exp_avg_sq_col", "row_var", "col_var"},
        "factored second moments (Adafactor), which are sums over whole rows and columns",
    ),
    ({"preconditioners", "Q", "GG", "L", "R"}, "preconditioners that mix units (Shampoo, SOAP)"),
    ({"projector"}, "moments of projected gradients (GaLore)"),
    ({"old_dirs", "prev_flat_grad"}, "a history of all parameters in one vector (LBFGS)"),
)

# What holds parameters in float32 beside the model's own, or moments of many parameters in one vector.
FLAT = {
    "fp32_from_fp16": "Apex' float32 master weights",
    "fp32_from_fp16_groups": "Apex' float32 master weights",
    "fp32_from_fp16_params": "Megatron's float32 master weights",
    "fp32_from_float16_groups": "Megatron's float32 master weights",
    "fp32_groups_flat_partition": "DeepSpeed's flat float32 master weights",
    "fp32_flat_groups": "DeepSpeed's flat float32 master weights",
    "single_partition_of_fp32_groups": "DeepSpeed's flat float32 master weights",
    "base_optimizer_state": "DeepSpeed's partitioned optimizer",
}


def kind_of(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]) -> str:
    """The family by what is kept for each parameter, "other" if none; before the first step, by the settings."""
    settings = {key for group in groups for key in group}
    if settings & _ORTHOGONAL:
        return "other"
    kept = kept_entries(state)
    if not kept and groups:
        return next((kind for kind, needed in _BY_SETTINGS if needed <= settings), "other")
    fits = (kind for kind, family in FAMILIES.items() if _REQUIRED[kind] <= kept <= set(family))
    return next(fits, "other")


def kept_entries(state: Mapping[Any, Any]) -> set[str]:
    """Names of what is kept for parameters: tensors with axes, where there are any; `step` and the like have none."""
    found = {
        (name, value.dim() > 0)
        for entries in state.values()
        if isinstance(entries, Mapping)
        for name, value in entries.items()
        if isinstance(value, torch.Tensor) and name != "step"
    }
    with_axes = {name for name, axes in found if axes}
    return with_axes or {name for name, _ in found}


def why_unknown(state: Mapping[Any, Any], groups: Iterable[Mapping[str, Any]]) -> str:
    """Why an optimizer's state cannot follow, for a message that goes on from "it keeps"."""
    names = {str(name) for entries in state.values() if isinstance(entries, Mapping) for name in entries}
    for telling, why in _WHY:
        if names & telling:
            return why
    if any(_ORTHOGONAL & set(group) for group in groups):
        return "momentum whose steps mix units (Muon)"
    listed = ", ".join(repr(name) for name in sorted(kept_entries(state))[:4]) or "state"
    return f"{listed}, a kind of state that netgrow does not know"
