"""The JSON Schema of a spec, made from the registry of operations, for editors to complete and check by.

`spec.schema.json` is this, written by `python -m netgrow_cli.topology.schema > spec.schema.json`; a test compares.
It takes every spec that the parser takes, but for `Conv2d` and the like, of which it does not check the settings,
and refuses what can be seen without a checkpoint.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from netgrow_cli.topology.blocks import MOST_BLOCKS
from netgrow_cli.topology.ops import ALIASES, ATTR_ALIASES, OPS, Attr, Op
from netgrow_cli.topology.ops.base import REQUIRED

Schema = dict[str, Any]

_DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool")

# What a setting is, by its name.
_SETTINGS = {
    "accumulate": "Whether values are added to what is there.",
    "adds": "Whether the axis is a new one, behind all others.",
    "align_corners": "Whether corners of input and output lie on each other, for the modes that interpolate.",
    "amplitude": "What cosines and sines are multiplied by.",
    "alpha": "The scale of the operation's formula, as in PyTorch.",
    "args": "The call's arguments, `$0` for the first operand and so on.",
    "approximate": "`none`, or `tanh` for the approximation.",
    "axes": "The axes, counted from 0 (the batch) or from -1 (the last).",
    "axis": "The axis, counted from 0 (the batch) or from -1 (the last); the axis of the units where it is left out.",
    "batch_first": "Whether the input is batch, positions, units; else positions come first, as PyTorch has it.",
    "beta": "As in PyTorch.",
    "bias": "Whether there are biases. Follows from the checkpoint.",
    "bidirectional": "Whether it runs in both directions. Follows from the checkpoint.",
    "by": "A number in place of the second operand.",
    "call": "The operation of torch as torch names it: `aten.sinc.default`.",
    "ceil_mode": "Whether a last window that is not full counts.",
    "chunks": "Into how many equal parts.",
    "count_include_pad": "Whether padding counts in the mean.",
    "dilation": "The distance between kernel taps: one number, or one for each spatial axis.",
    "dims": "Over how many of the last axes, where no gain says so.",
    "end": "The last axis of those that become one.",
    "dtype": "As torch calls it; numbers that are not whole are computed with in the network's own.",
    "equation": "As `torch.einsum` takes it, with a letter for each axis: `bqd,bkd->bqk`.",
    "eps": "What is added under the root.",
    "frequencies": "The angle by which each pair turns from one position to the next; by default powers of theta.",
    "dim": "The axis of the weight along which each index has a norm of its own, as PyTorch's weight_norm has it.",
    "gain_scale": "What standardised weights are multiplied by, beside the gain.",
    "groups": "The number of groups. Follows from the shapes but for transposed convolutions and group_norm.",
    "hidden_size": "The hidden units of each level and direction. Follows from the shapes.",
    "index": "Which one, counted from 0, or from -1 (the last).",
    "interleaved": "Whether neighbours are pairs (0 and 1); else the first half goes with the second.",
    "is_causal": "Whether a position sees those up to itself only.",
    "k": "As in PyTorch.",
    "keepdim": "Whether the axes stay, with size 1.",
    "kwargs": "The call's arguments that have names.",
    "kernel_size": "The window: one number, or one for each spatial axis.",
    "long_frequencies": "The frequencies where there are more positions than `longer_than`.",
    "longer_than": "Up to how many positions `frequencies` hold.",
    "lower": "The least slope.",
    "rows": "How many rows the mask chose in the trace.",
    "mask": "Whether what chooses rows is a mask of truth values.",
    "max": "The largest value.",
    "min": "The smallest value.",
    "mode": "As in PyTorch.",
    "lambd": "Where the function leaves 0.",
    "min_val": "The lower bound.",
    "max_val": "The upper bound.",
    "tau": "The temperature that its input is divided by.",
    "negative_slope": "The slope below 0.",
    "nonlinearity": "The function of a hidden unit.",
    "num_layers": "How many levels. Follows from the checkpoint.",
    "offset": "What is added to the gain: 1 where it is stored as 1 + w.",
    "ord": "The power of the norm.",
    "output_padding": "As in PyTorch: one number, or one for each spatial axis.",
    "output_size": "How many positions come out: one number, or one for each spatial axis.",
    "p": "The probability of dropout (ignored), or the power of the norm.",
    "padding": "Padding before and after: one number, or one for each spatial axis.",
    "padding_mode": "What the padding holds.",
    "positions": "The sizes of the last axes afterwards.",
    "proj_size": "The units that a level's hidden ones are projected to; 0 for none. Follows from the shapes.",
    "rotated": "How many of the first indices are turned; all by default.",
    "scale": "What the products of queries and keys are multiplied by; 1 over the root of their size by default.",
    "scaled": "Whether it is divided by the root of the size that is summed over, as attention written out is.",
    "scale_factor": "A whole factor: one number, or one for each spatial axis.",
    "shape": "The new sizes: 0 keeps an axis, -1 is what remains, a name is a size from `dims`.",
    "shapes": "The shape of each result.",
    "shifts": "How far the axis moves, or each of the axes.",
    "size": "How many neighbouring channels.",
    "sizes": "The size of each piece (numbers or names from `dims`), or one size for all; of expand, the new size of "
    "each axis, -1 where it stays.",
    "skip": "The token (padding) that is no position: it gets its own number, and positions are counted past it.",
    "softcap": "The bound of scores: cap times tanh(score / cap).",
    "start": "The first index, or the first axis of those that become one.",
    "step": "The distance between indices that are taken.",
    "stop": "The index behind the last; to the end where it is left out.",
    "stretch": "What positions are divided by.",
    "stride": "The step: one number, or one for each spatial axis.",
    "theta": "The base of the frequencies: pair i of n turns by theta^(-i / n) from one position to the next.",
    "threshold": "The value from which on the input passes.",
    "upper": "The largest slope.",
    "value": "What is put in.",
    "window": "How many positions back a position sees, itself included; all by default.",
}

_MODES = {
    ("padding_mode", "conv"): ("zeros", "reflect", "replicate", "circular"),
    ("mode", "pad"): ("constant", "reflect", "replicate", "circular"),
    ("mode", "upsample"): ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area"),
    ("approximate", "gelu"): ("none", "tanh"),
    ("nonlinearity", "rnn"): ("tanh", "relu"),
}

# What stands in a list, where it is not whole numbers.
_ITEMS: dict[str, Schema] = {
    "args": {},
    "frequencies": {"type": "number"},
    "long_frequencies": {"type": "number"},
    "shapes": {"type": "array", "items": {"type": "integer"}},
    "value": {"type": ["number", "boolean", "array"]},
}

_LAYER_KEYS: dict[str, Schema] = {
    "op": {"$ref": "#/$defs/op"},
    "from": {"$ref": "#/$defs/from"},
    "source": {"type": ["string", "null"], "description": "File and line of the model's code: `net.py:12`."},
    "code": {
        "type": ["object", "null"],
        "additionalProperties": {"type": "string"},
        "description": "By setting, the attribute of a module that holds its number in the model's code: "
        "`{shape[2]: blocks.0.attn.num_heads}`; `fit` sets it.",
    },
    "params": {"$ref": "#/$defs/params"},
    "prefix": {
        "type": ["string", "null"],
        "description": "What stands before the parameters' names in the checkpoint; the layer's name and a dot by "
        "default. Say `fc1.` to use fc1's parameters a second time.",
    },
}


def schema() -> Schema:
    """The schema of a spec."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "netgrow spec",
        "description": "How the layers of a neural network feed each other. Sizes come from the checkpoint.",
        "type": "object",
        "required": ["netgrow", "inputs", "layers", "outputs"],
        "additionalProperties": False,
        "properties": {
            "netgrow": {"const": 1, "description": "The version of the format."},
            "inputs": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {"$ref": "#/$defs/input"},
                "description": "The network's inputs by name: `obs: [batch, 17]`.",
            },
            "layers": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"$ref": "#/$defs/name"},
                "patternProperties": {"\\{i\\}": {"$ref": "#/$defs/block"}},
                "additionalProperties": {"$ref": "#/$defs/layer"},
                "description": "The layers by name. A name that the checkpoint knows brings its parameters along: "
                "`fc1` has `fc1.weight` and `fc1.bias`.",
            },
            "outputs": {
                "anyOf": [{"$ref": "#/$defs/ref"}, {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/ref"}}],
                "description": "What leaves the network, and so keeps its size.",
            },
            "dims": {
                "type": ["object", "null"],
                "additionalProperties": {"type": "integer", "minimum": 1},
                "description": "Sizes by name that no tensor's shape determines: `heads: 8`.",
            },
            "prefix": {
                "type": ["string", "null"],
                "description": "What stands before every tensor's name in the checkpoint: `module.`; found by itself "
                "where it is usual.",
            },
            "key": {
                "type": ["string", "null"],
                "description": "Where the state dict lies in the checkpoint: `model_state_dict`; found by itself where "
                "it is usual.",
            },
            "config": {
                "type": ["object", "null"],
                "additionalProperties": {"$ref": "#/$defs/configKey"},
                "description": "Keys of the model's config.json that follow its sizes, and where their values are "
                "found: `hidden_size: embed.weight[1]`.",
            },
            "ignore": {
                "anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}],
                "description": "Patterns of tensors that belong to no layer on purpose: `*.num_batches_tracked`.",
            },
        },
        "$defs": _definitions(),
    }


def _definitions() -> Schema:
    return {
        "name": {
            "type": "string",
            "pattern": "\\S",
            "not": {"pattern": "^.+\\[(\\d*:\\d*|\\d+)\\]$"},
        },
        "ref": {
            "type": ["string", "integer", "boolean"],
            "description": "A layer or an input; a range of units: `act[0:32]`; one of several outputs: `parts[0]`.",
        },
        "input": {
            "anyOf": [{"$ref": "#/$defs/shape"}, _input()],
            "description": "A shape, or a mapping of shape, dtype, low and high.",
        },
        "shape": {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]},
            "description": "Sizes, and names of sizes that may be anything (`batch`, `time`); the batch first.",
        },
        "from": {
            "description": "What the layer reads: a layer, a list of operands, or which layer feeds which index range: "
            "`{'0:64': a, '64:96': b}`.",
            "anyOf": [
                {"$ref": "#/$defs/ref"},
                {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/ref"}},
                {
                    "type": "object",
                    "minProperties": 1,
                    "propertyNames": {"pattern": "^\\s*\\d+\\s*:\\s*\\d+\\s*$"},
                    "additionalProperties": {"$ref": "#/$defs/ref"},
                },
            ],
        },
        "places": {
            "description": "An axis of a tensor or of a layer's output (`fc.weight[0]`), a setting of a layer "
            "(`norm.eps`), or one of `dims` (`dims.heads`); `{i}` stands for all blocks. `a / b` and `2 * a` are "
            "computed. All places must agree.",
            "anyOf": [
                {"type": "string", "pattern": "\\S"},
                {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "\\S"}},
            ],
        },
        "configKey": {
            "anyOf": [
                {"$ref": "#/$defs/places"},
                {
                    "type": "object",
                    "required": ["at"],
                    "additionalProperties": False,
                    "properties": {
                        "at": {"$ref": "#/$defs/places"},
                        "default": {
                            "type": ["string", "number", "null"],
                            "description": "What it is where the file is silent, in terms of other keys: "
                            "`hidden_size / heads`.",
                        },
                        "multiple_of": {
                            "type": ["string", "null"],
                            "description": "Another key, whose multiple its value has to be.",
                        },
                    },
                },
            ],
        },
        "each": {
            "type": "object",
            "required": ["each"],
            "additionalProperties": False,
            "properties": {"each": {"type": "array"}},
            "description": "Inside a block: one value for each block.",
        },
        "params": {
            "type": ["object", "null"],
            "additionalProperties": {"type": ["string", "null"]},
            "description": "Tensors by the operation's name for them, where the names do not follow the layer's; null "
            "for one that is not there.",
        },
        "op": {
            "description": "The operation.",
            "anyOf": [
                {"enum": operations()},
                {"type": "string", "pattern": "[A-Z]", "description": "PyTorch's class names are understood: Conv2d."},
            ],
        },
        "layer": {
            "type": "object",
            "required": ["op"],
            "properties": _LAYER_KEYS,
            "allOf": [_of_one_kind(names) for names in _kinds()],
        },
        "block": {
            "if": {"type": "object", "required": ["repeat"]},
            "then": _block(),
            "else": {"$ref": "#/$defs/layer"},
        },
    }


def operations() -> list[str]:
    """All names that an operation may be called by, in lower case."""
    return sorted({*OPS, *ALIASES})


def _input() -> Schema:
    return {
        "type": "object",
        "required": ["shape"],
        "additionalProperties": False,
        "properties": {
            "shape": {"$ref": "#/$defs/shape"},
            "dtype": {"enum": list(_DTYPES), "default": "float32"},
            "low": {"type": ["number", "null"], "description": "The least value of random probes."},
            "high": {"type": ["number", "null"], "description": "The bound of random probes; of integers, exclusive."},
        },
        "if": {"properties": {"dtype": {"pattern": "int"}}, "required": ["dtype"]},
        "then": {"required": ["high"], "properties": {"high": {"type": "number"}}},
    }


def _block() -> Schema:
    return {
        "type": "object",
        "required": ["repeat", "from", "layers", "output"],
        "additionalProperties": False,
        "properties": {
            "repeat": {
                "anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": MOST_BLOCKS}],
                "description": "How often; auto counts in the checkpoint.",
            },
            "start": {
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": MOST_BLOCKS,
                "description": "The number of the first block, 0 by default.",
            },
            "from": {"type": "string", "description": "What `in` is in the first block; then the block before."},
            "layers": {
                "type": "object",
                "propertyNames": {"$ref": "#/$defs/name"},
                "additionalProperties": {"$ref": "#/$defs/layer"},
                "description": "The layers of one block; `{i}` in names of tensors and layers is its number.",
            },
            "output": {"type": "string", "description": "The layer that the next block reads, and who reads the last."},
        },
    }


# -- operations ----------------------------------------------------------------------------------------


def _kinds() -> list[list[str]]:
    """Operations that are stated alike, together."""
    alike: dict[str, list[str]] = {}
    for name, op in OPS.items():
        alike.setdefault(json.dumps(_settings(op), sort_keys=True), []).append(name)
    return list(alike.values())


def _of_one_kind(names: list[str]) -> Schema:
    called = sorted({*names, *(other for other, name in ALIASES.items() if name in names)})
    stated: Schema = {"const": called[0]} if len(called) == 1 else {"enum": called}
    described = _settings(OPS[names[0]])
    if len(names) == 1:
        described["description"] = OPS[names[0]].doc
    return {"if": {"properties": {"op": stated}, "required": ["op"]}, "then": described}


def _settings(op: Op) -> Schema:
    properties: Schema = dict.fromkeys(_LAYER_KEYS, True)
    required: list[Any] = ["from"] if op.inputs[0] else []
    for name, attr in op.attrs.items():
        if name == "ranges":
            continue
        one = _setting(op, name, attr)
        properties[name] = one
        others = [key for key, names in ATTR_ALIASES.items() if key not in op.attrs and _first(op, names) == name]
        for other in others:
            properties[other] = {**one, "description": f"The same as `{name}`."}
        if attr.default is REQUIRED:
            required.append({"anyOf": [{"required": [key]} for key in (name, *others)]} if others else name)
    if op.params:
        properties["params"] = _names_of(op)
    properties["params"] = (
        {**properties["params"], "additionalProperties": False} if op.params else {"maxProperties": 0}
    )
    if op.inputs[1] == 0:
        properties["from"] = False
    elif op.inputs[1] == 1:
        properties["from"] = {"maxItems": 1}
    found: Schema = {"properties": properties, "additionalProperties": False}
    plain = [item for item in required if isinstance(item, str)]
    if plain:
        found["required"] = plain
    choices = [item for item in required if not isinstance(item, str)]
    return {**found, "allOf": choices} if choices else found


def _names_of(op: Op) -> Schema:
    found: Schema = {"properties": {param.name: True for param in op.params if not param.numbered}}
    numbered = [f"^{param.pattern}$" for param in op.params if param.numbered]
    return {**found, "patternProperties": dict.fromkeys(numbered, True)} if numbered else found


def _first(op: Op, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in op.attrs), None)


def _setting(op: Op, name: str, attr: Attr) -> Schema:
    types: list[Schema] = []
    least = 0 if name == "args" else 1
    inner = {"anyOf": [{"type": "integer"}, {"type": "string"}]} if name in ("shape", "sizes") else {"type": "integer"}
    inner = _ITEMS.get(name, inner)
    if float in attr.types:
        types.append({"type": "number"})
    elif int in attr.types:
        types.append({"type": "integer"})
    if list in attr.types:
        types.append({"type": "array", "minItems": least, "items": inner})
    if dict in attr.types:
        types.append({"type": "object"})
    if bool in attr.types:
        types.append({"type": "boolean"})
    if str in attr.types:
        types.append(_text(op, name))
    if attr.default is not REQUIRED:
        types.append({"type": "null"})
    types.append({"$ref": "#/$defs/each"})
    found: Schema = {"anyOf": types} if len(types) > 1 else dict(types[0])
    found["description"] = _SETTINGS.get(name, "")
    if attr.default is not REQUIRED and attr.default is not None:
        found["default"] = attr.default
    return found


def _text(op: Op, name: str) -> Schema:
    if name == "padding":
        return {"enum": ["same", "valid"]}
    for (setting, start), words in _MODES.items():
        if name == setting and start in op.name:
            return {"enum": list(words)}
    return {"type": "string"}


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
