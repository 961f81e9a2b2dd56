"""The published JSON Schema is the generated one, and agrees with the parser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import SpecError
from netgrow_cli.topology import schema as generated
from netgrow_cli.topology import spec as parser
from netgrow_cli.topology.ops import ALIASES, OPS
from netgrow_cli.topology.spec import parse_spec

from .test_ops import CASES
from .test_soundness import NETWORKS

FILE = Path(generated.__file__).parent / "spec.schema.json"
SPECS = sorted((Path(__file__).resolve().parents[2] / "specs").glob("*.yaml"))
SCHEMA = json.loads(FILE.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

DESIGN = """
netgrow: 1
inputs:
  obs: [batch, 17]
layers:
  enc_a: {op: linear, from: obs}
  act_a: {op: relu, from: enc_a}
  enc_b: {op: linear, from: obs}
  act_b: {op: relu, from: enc_b}
  trunk:
    op: linear
    from: {"0:64": act_a, "64:96": act_b}
  act_t: {op: relu, from: trunk}
  mean:  {op: linear, from: "act_t[0:32]"}
  std:   {op: linear, from: "act_t[32:64]"}
  skip:  {op: add, from: [act_a, act_t]}
  value: {op: linear, from: skip}
outputs: [mean, std, value]
"""

BLOCKS = """
netgrow: 1
inputs:
  tokens: {shape: [batch, time], dtype: int64, high: 9}
layers:
  embed: {op: embedding, from: tokens}
  "model.layers.{i}":
    repeat: auto
    from: embed
    layers:
      norm: {op: rms_norm, from: in, eps: 1.0e-5}
      up: {op: Linear, from: norm, params: {weight: "model.layers.{i}.up.w", bias: null}}
      sum: {op: add, from: [in, up]}
    output: sum
  out: {op: linear, from: model.layers, params: {weight: embed.weight}}
outputs: out
dims: {heads: 3}
ignore: ["*.inv_freq"]
prefix: "module."
key: model
"""


def errors(document: Any) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(document)]


def test_the_file_is_what_the_registry_makes() -> None:
    assert FILE.read_text(encoding="utf-8") == generated.text(), (
        "python -m netgrow_cli.topology.schema > spec.schema.json"
    )


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_operations_are_those_of_the_registry() -> None:
    named = SCHEMA["$defs"]["op"]["anyOf"][0]["enum"]
    assert named == sorted({*OPS, *ALIASES})
    described = [one["if"]["properties"]["op"] for one in SCHEMA["$defs"]["layer"]["allOf"]]
    covered = [name for one in described for name in one.get("enum", [one.get("const")])]
    assert sorted(covered) == named


def test_keys_are_those_of_the_parser() -> None:
    assert set(SCHEMA["properties"]) == set(parser._TOP)
    assert set(SCHEMA["$defs"]["layer"]["properties"]) == set(parser._LAYER)


def test_everything_that_can_be_stated_is_described() -> None:
    for one in SCHEMA["$defs"]["layer"]["allOf"]:
        for name, setting in one["then"]["properties"].items():
            assert name in ("op", "from", "params", "prefix", "source", "code") or setting["description"], name
    for name, setting in SCHEMA["properties"].items():
        assert setting["description"], name


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_specs_that_ship(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert errors(yaml.safe_load(text)) == []
    parse_spec(text, path.name)


@pytest.mark.parametrize("text", [DESIGN, BLOCKS], ids=["design", "blocks"])
def test_specs_by_hand(text: str) -> None:
    assert errors(yaml.safe_load(text)) == []
    parse_spec(text, "spec.yaml")


@pytest.mark.parametrize("name", NETWORKS)
def test_specs_of_all_tested_networks(name: str) -> None:
    layers, inputs, outputs, _, more = NETWORKS[name]
    written = {key: {k: v for k, v in body.items() if k != "tensors"} for key, body in layers.items()}
    dims = more.get("dims", {})
    assert errors({"netgrow": 1, "inputs": inputs, "layers": written, "outputs": outputs, "dims": dims}) == []


def test_every_setting_of_every_operation_is_accepted() -> None:
    for item in CASES:
        reads = [f"x{n}" for n in range(len(item.shapes))]
        body = {"op": item.op, **({"from": reads} if reads else {}), **item.attrs}
        document = {"netgrow": 1, "inputs": {"x0": [3]}, "layers": {"out": body}, "outputs": ["out"]}
        assert errors(document) == [], str(item)


def change(path: str, value: Any) -> str:
    """A small valid spec with one place changed; the path's last word is deleted where the value is `...`."""
    document: Any = {
        "netgrow": 1,
        "inputs": {"x": ["batch", 4]},
        "layers": {
            "fc": {"op": "linear", "from": "x"},
            "pool": {"op": "max_pool1d", "from": "fc", "kernel_size": 2},
            "b.{i}": {"repeat": 2, "from": "fc", "layers": {"r": {"op": "relu", "from": "in"}}, "output": "r"},
        },
        "outputs": ["fc"],
    }
    place = document
    *before, last = path.split("/") if path else [""]
    for word in before:
        place = place[word]
    if value is ...:
        del place[last]
    elif path:
        place[last] = value
    return json.dumps(document)


INVALID = [
    ("netgrow", ...),
    ("netgrow", 2),
    ("netgrow", "1"),
    ("netgrow", True),
    ("more", 1),
    ("inputs", ...),
    ("inputs", {}),
    ("inputs", []),
    ("inputs/x", []),
    ("inputs/x", [0]),
    ("inputs/x", [True]),
    ("inputs/x", "batch"),
    ("inputs/x", {"dtype": "float32"}),
    ("inputs/x", {"shape": ["batch"], "dtype": "float8"}),
    ("inputs/x", {"shape": ["batch"], "dtype": "int64"}),
    ("inputs/x", {"shape": ["batch"], "low": "a"}),
    ("inputs/x", {"shape": ["batch"], "size": 3}),
    ("layers", {}),
    ("layers", ["fc"]),
    ("layers/fc", "linear"),
    ("layers/fc", None),
    ("layers/fc/op", ...),
    ("layers/fc/op", 3),
    ("layers/fc/op", "lineal"),
    ("layers/fc/from", ...),
    ("layers/fc/from", []),
    ("layers/fc/from", {}),
    ("layers/fc/from", {"a": "x"}),
    ("layers/fc/source", 3),
    ("layers/more", {"op": "parameter", "from": "x", "params": {"weight": "fc.weight"}}),
    ("layers/more", {"op": "aten", "from": "x", "call": "aten.sin.default", "shapes": 3}),
    ("layers/more", {"op": "pointwise", "from": "x", "call": "aten.sin.default", "kwargs": []}),
    ("layers/fc/from", [["x"]]),
    ("layers/fc/from", ["x", "x"]),
    ("layers/fc/bias", False),
    ("layers/fc/params", ["w"]),
    ("layers/fc/params", {"w": "fc.weight"}),
    ("layers/fc/params", {"weight": 3}),
    ("layers/fc/prefix", 3),
    ("layers/fc[0:3]", {"op": "linear", "from": "x"}),
    ("layers/pool/kernel_size", ...),
    ("layers/pool/kernel_size", "2"),
    ("layers/pool/kernel_size", 2.5),
    ("layers/pool/kernel_size", True),
    ("layers/pool/ceil_mode", 1),
    ("layers/pool/ranges", [1]),
    ("layers/b.{i}/repeat", 0),
    ("layers/b.{i}/repeat", "many"),
    ("layers/b.{i}/repeat", True),
    ("layers/b.{i}/output", ...),
    ("layers/b.{i}/output", 3),
    ("layers/b.{i}/from", ["fc"]),
    ("layers/b.{i}/dims", {}),
    ("layers/b.{i}/layers", []),
    ("layers/b", {"repeat": 2, "from": "fc", "layers": {}, "output": "r"}),
    ("outputs", ...),
    ("outputs", []),
    ("outputs", {"a": "fc"}),
    ("outputs", [["fc"]]),
    ("dims", {"heads": 0}),
    ("dims", {"heads": "8"}),
    ("dims", [8]),
    ("prefix", 3),
    ("key", ["model"]),
    ("ignore", {"a": "b"}),
    ("ignore", [3]),
]

TENSORS = {n: TensorInfo(n, s, "F32") for n, s in (("fc.weight", (6, 4)), ("fc.bias", (6,)))}


def test_the_unchanged_spec_is_valid() -> None:
    text = change("dims", {})
    assert errors(json.loads(text)) == []
    parse_spec(text, "spec.yaml").graph(TENSORS)


@pytest.mark.parametrize(("path", "value"), INVALID, ids=str)
def test_both_refuse(path: str, value: Any) -> None:
    text = change(path, value)
    assert errors(json.loads(text)) != []
    with pytest.raises(SpecError, match=re.escape("spec.yaml")):
        parse_spec(text, "spec.yaml").graph(TENSORS)
