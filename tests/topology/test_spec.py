"""The spec: what it means, and that every mistake is explained with file, line, layer and what was expected."""

from __future__ import annotations

import textwrap
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import SpecError
from netgrow_cli.topology.graph import Graph
from netgrow_cli.topology.solve import Topology, require_complete, solve
from netgrow_cli.topology.spec import parse_spec, read_spec

from .networks import layer, linear, network

MLP = {"fc1.weight": (6, 4), "fc1.bias": (6,), "fc2.weight": (2, 6), "fc2.bias": (2,)}


def infos(shapes: Mapping[str, Sequence[int]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, tuple(shape), "F32") for name, shape in shapes.items()}


def graph(text: str, shapes: Mapping[str, Sequence[int]] = MLP) -> Graph:
    return parse_spec(textwrap.dedent(text), "net.yaml").graph(infos(shapes))


def solved(text: str, shapes: Mapping[str, Sequence[int]] = MLP) -> Topology:
    return solve(graph(text, shapes), infos(shapes))


def failure(text: str, shapes: Mapping[str, Sequence[int]] = MLP) -> str:
    with pytest.raises(SpecError) as caught:
        solved(text, shapes)
    message = str(caught.value)
    assert "\n" not in message and "Located(" not in message and "Mark(" not in message, message
    return message


def layers(text: str, inputs: str = "{x: [batch, 4]}", outputs: str = "[fc2]") -> str:
    """A spec whose layers start in line 4."""
    body = textwrap.indent(textwrap.dedent(text).strip("\n"), "  ")
    return f"netgrow: 1\ninputs: {inputs}\nlayers:\n{body}\noutputs: {outputs}\n"


GOOD = layers("""
    fc1: {op: linear, from: x}
    act: {op: relu, from: fc1}
    fc2: {op: linear, from: act}
""")


def test_a_spec() -> None:
    found = graph(GOOD)
    assert [node.name for node in found.nodes] == ["fc1", "act", "fc2"]
    assert found.node("fc1").params == {"weight": "fc1.weight", "bias": "fc1.bias"}
    assert found.node("act").params == {}
    assert [str(ref) for ref in found.outputs] == ["fc2"]
    assert found.origin == "net.yaml"
    assert str(found.node("fc2").mark) == "net.yaml:6"


# -- the document --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "net.yaml: it is empty"),
        ("# nothing\n", "net.yaml: it is empty"),
        ("3", "net.yaml:1: a spec is a mapping"),
        ("[1, 2]", "net.yaml:1: a spec is a mapping"),
        ("inputs: {}", "net.yaml:1: not a netgrow spec: it lacks `netgrow: 1`"),
        ("netgrow: 2", "net.yaml:1: spec version 2; this netgrow reads version 1"),
        ("netgrow: true", "net.yaml:1: spec version True"),
        ("netgrow: 1.0", "net.yaml:1: spec version 1.0"),
        ("netgrow: 1", "net.yaml: it lacks `inputs:`"),
        ("netgrow: 1\ninputs: {x: [1]}\nlayers:\noutputs: [a]", "net.yaml: it lacks `layers:`"),
        ("netgrow: 1\ninputs: [x]\nlayers: {a: {}}\noutputs: [a]", "net.yaml:2: `inputs:` must be a mapping"),
        ("netgrow: 1\ninputs: {x: [1]}\nlayers: {a: {}}\noutputs: {a: b}", "net.yaml:4: `outputs:` must be a list"),
        ("netgrow: 1\n\nlayer: {}", "net.yaml:3: unknown key 'layer' (did you mean 'layers'?)"),
        ("netgrow: 1\ninputs: {x: [1, 2}\n", "net.yaml:2: no valid YAML"),
        ("netgrow: 1\n\tinputs: 3\n", "net.yaml:2: no valid YAML"),
        ("netgrow: 1\n---\nnetgrow: 1\n", "net.yaml:2: no valid YAML"),
        ("netgrow: \x00", "net.yaml: no valid YAML"),
        ("netgrow: 1\nlayers: *none\n", "net.yaml:2: no valid YAML: found undefined alias"),
        ("netgrow: 1\nnetgrow: 1\n", "net.yaml:2: 'netgrow' is given twice (first in line 1)"),
        ("netgrow: 1\nlayers:\n  a: 1\n  b: 2\n  a: 3\n", "net.yaml:5: 'a' is given twice (first in line 3)"),
        ("netgrow: 1\n[1, 2]: 3\n", "net.yaml:2: a key must be a word"),
        ("netgrow: 1\nprefix: [a]\n", "it lacks `inputs:`"),
    ],
)
def test_documents_that_are_no_specs(text: str, message: str) -> None:
    assert message in failure(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prefix: [a]", "net.yaml:8: `prefix:` must be text, found ['a']"),
        ("key: 3", "net.yaml:8: `key:` must be text, found 3"),
        ("dims: [8]", "net.yaml:8: `dims:` must map names to sizes"),
        ("dims: {heads: 0}", "net.yaml:8: dims: heads must be a positive number, found 0"),
        ("dims: {heads: true}", "found True"),
        ("dims: {heads: [1]}", "found [1]"),
        ("ignore: {a: b}", "net.yaml:8: `ignore:` lists patterns"),
        ("ignore: [a, 3]", "net.yaml:8: `ignore:` lists patterns of tensors' names, found 3"),
    ],
)
def test_other_keys(line: str, message: str) -> None:
    assert message in failure(GOOD + line)


def test_null_is_absent() -> None:
    spec = parse_spec(GOOD + "prefix:\nkey:\ndims:\nignore:\n", "net.yaml")
    assert (spec.prefix, spec.key) == (None, None)
    assert spec.graph(infos(MLP)).dims == {}
    assert parse_spec(GOOD + "prefix: module.\nkey: model", "net.yaml").prefix == "module."


# -- documents that attack --------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases of aliases"),
        ("netgrow: 1\nlayers:\n  a: {" + "b: [" * 60, "net.yaml:3: nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: &a {b: *a}", "nested too deeply"),
        ("a: &a [*a, *a, *a]", "nested too deeply"),
        ("netgrow: " + "[" * 100_000, "nested too deeply"),
        ("netgrow: " + "{a: " * 100_000, "nested too deeply"),
        ("netgrow: " + "- " * 50_000, ""),
        ("\n".join(" " * n + "a:" for n in range(3000)), "nested too deeply"),
        (
            "netgrow: !!python/object/apply:os.system [ls]",
            "net.yaml:1: tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("netgrow: !!python/name:os.system x", "net.yaml:1: tag:yaml.org,2002:python/name:os.system"),
        ("netgrow: !!python/object:dict {}", "is nothing a spec can hold"),
        ("netgrow: !own 1", "net.yaml:1: !own '1' is nothing a spec can hold"),
        ("netgrow: !!set {a}", "is nothing a spec can hold"),
        ("netgrow: !!int abc", "is nothing a spec can hold"),
        ("netgrow: " + "9" * 5000, ""),
        ("netgrow: 2024-01-01", "spec version '2024-01-01'"),
    ],
    ids=lambda value: value[:30],
)
def test_documents_that_attack(text: str, message: str) -> None:
    assert message in failure(text)


def test_an_alias_bomb_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        assert "aliases of aliases" in failure(BOMB)
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()


def test_too_many_layers() -> None:
    many = "\n".join(f"r{n}: {{op: relu, from: in}}" for n in range(30))
    block = '"b.{i}":\n  repeat: 10000\n  from: x\n  output: r0\n  layers:\n' + textwrap.indent(many, "    ")
    assert "net.yaml:4: block 'b.{i}' unrolls to more than 200000 layers" in failure(layers(block))
    blocks = "\n".join(
        f'"b{n}.{{i}}": {{repeat: 10000, from: x, output: r, layers: {{r: {{op: relu, from: in}}}}}}' for n in range(21)
    )
    assert "more than 200000 layers" in failure(layers(blocks))


def test_files(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    for path, message in ((missing, "there is no such spec"), (tmp_path, "cannot be read")):
        with pytest.raises(SpecError, match=message):
            read_spec(path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SpecError, match="cannot be read as text"):
        read_spec(binary)
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(SpecError, match="larger than 16 MiB"):
        read_spec(large)
    good = tmp_path / "good.yaml"
    good.write_text(GOOD, encoding="utf-8")
    assert read_spec(good).file == str(good)


# -- inputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("{x: []}", "net.yaml:2: input 'x' needs a shape, as in [batch, 17]"),
        ("{x: 17}", "needs a shape"),
        ("{x: }", "needs a shape"),
        ("{x: {dtype: float32}}", "needs a shape"),
        ("{x: [batch, 0]}", "net.yaml:2: input 'x': 0 is neither a size nor a name"),
        ("{x: [batch, 1.5]}", "1.5 is neither"),
        ("{x: [batch, true]}", "True is neither"),
        ("{x: [batch, [4]]}", "[4] is neither"),
        ("{x: {shape: [batch, 4], size: 3}}", "has shape, dtype, low and high, not 'size'"),
        ("{x: {shape: [batch, 4], dtype: float8}}", "unknown dtype 'float8'"),
        ("{x: {shape: [batch, 4], dtype: [a]}}", "unknown dtype"),
        ("{x: {shape: [batch, 4], dtype: int64}}", "say below which: `high: 1000`"),
        ("{x: {shape: [batch, 4], dtype: int64, high: }}", "say below which"),
        ("{x: {shape: [batch, 4], low: a}}", "low must be a number"),
        ("{x: {shape: [batch, 4], low: [1]}}", "low must be a number"),
        ("{x: {shape: [batch, 4], high: true}}", "high must be a number"),
        ("{x: {shape: [batch, 4], low: 1, high: 1}}", "low 1 is not below high 1"),
    ],
)
def test_inputs_that_are_wrong(inputs: str, message: str) -> None:
    assert message in failure(layers("fc1: {op: linear, from: x}", inputs))


def test_inputs() -> None:
    text = layers("fc1: {op: linear, from: x}", "{x: {shape: [batch, 4], low: -1e-3, high: 1e3}}", "[fc1]")
    (given,) = graph(text).inputs
    assert (given.shape, given.dtype, given.low, given.high) == (("batch", 4), "float32", -0.001, 1000.0)
    names = layers("fc1: {op: linear, from: x}", "{x: [batch, time, 4]}", "[fc1]")
    assert solved(names).values["x"][0].shape == (3, 5, 4)
    assert solve(graph(names), infos(MLP), sizes={"time": 9, "batch": 2}).values["x"][0].shape == (2, 9, 4)
    dims = names + "dims: {time: 7}\n"
    assert solved(dims).values["x"][0].shape == (3, 7, 4)


# -- layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("fc1: linear", "net.yaml:4: layer 'fc1' must be a mapping: {op: ..., from: ...}"),
        ("fc1:", "net.yaml:4: layer 'fc1' must be a mapping"),
        ("fc1: {from: x}", "net.yaml:4: layer 'fc1': it lacks `op:`"),
        ("fc1: {op: , from: x}", "`op:` must be the name of an operation, found None"),
        ("fc1: {op: [linear], from: x}", "found ['linear']"),
        ("fc1: {op: lineal, from: x}", "net.yaml:4: layer 'fc1': unknown op 'lineal' (did you mean linear"),
        ("fc1: {op: 'weird thing', from: x}", "unknown op 'weird thing'"),
        ("fc1: {op: linear}", "layer 'fc1': it lacks `from:`, which says what it reads"),
        ("fc1: {op: linear, from: }", "should name a layer here"),
        ("fc1: {op: linear, from: []}", "`from:` is an empty list"),
        ("fc1: {op: linear, from: {}}", "`from:` is an empty mapping"),
        ("fc1: {op: linear, from: y}", "net.yaml:4: 'fc1' reads 'y', which is no layer"),
        ("act1: {op: relu, from: fc}\nfc1: {op: linear, from: x}", "'fc', which is no layer (did you mean 'fc1'?)"),
        ("fc1: {op: linear, from: 1.5}", "should name a layer here, as in 'fc1' or 'fc1[0:32]'"),
        ("fc1: {op: linear, from: [[x]]}", "should name a layer here"),
        ("fc1: {op: linear, from: [x, x]}", "it takes 1 operand, `from` gives 2; for a concatenation give ranges"),
        ("fc1: {op: relu, from: [x, x]}", "it takes 1 operand, `from` gives 2"),
        ("fc1: {op: linear, from: x, bias: no}", "net.yaml:4: layer 'fc1': linear has no setting 'bias'"),
        ("p: {op: max_pool1d, from: x, kernel: 2, strides: 1}", "no setting 'strides' (did you mean 'stride'"),
        ("p: {op: max_pool1d, from: x}", "layer 'p': max_pool1d needs `kernel_size:`"),
        ("p: {op: max_pool1d, from: x, kernel_size: }", "needs `kernel_size:`"),
        ("p: {op: max_pool1d, from: x, kernel_size: big}", "kernel_size: 'big' should be int or list"),
        ("p: {op: max_pool1d, from: x, kernel_size: 2.0}", "kernel_size: 2.0 should be int or list"),
        ("p: {op: max_pool1d, from: x, kernel_size: true}", "kernel_size: True should be int or list"),
        ("p: {op: max_pool1d, from: x, kernel_size: 2, ceil_mode: 1}", "ceil_mode: 1 should be bool"),
        ("p: {op: max_pool1d, from: x, kernel_size: 2, kernel: 3}", "stated already under another name"),
        ("c: {op: cat, from: x, ranges: [1]}", "cat has no setting 'ranges'"),
        ("fc1: {op: linear, from: x, params: [w]}", "`params:` must map a parameter to a tensor's name"),
        ("fc1: {op: linear, from: x, params: {w: fc1.weight}}", "linear has no parameter 'w'; it has weight, bias"),
        ("fc1: {op: relu, from: x, params: {w: fc1.weight}}", "relu has no parameter 'w'; it has none"),
        ("fc1: {op: linear, from: x, params: {weight: 3}}", "params: weight must name a tensor, found 3"),
        (
            "fc1: {op: linear, from: x, params: {weight: fc1.wieght}}",
            "no tensor 'fc1.wieght' in the checkpoint",
        ),
        ("fc1: {op: linear, from: x, params: {bias: fc1.offset}}", "there is no tensor 'fc1.offset'"),
        ("fc1: {op: linear, from: x, params: {weight: null}}", "its weight is not in the checkpoint"),
        ("fc1: {op: linear, from: x, prefix: [a]}", "`prefix:` must be text, found ['a']"),
        ("fc3: {op: linear, from: x}", "layer 'fc3': there is no tensor 'fc3.weight' in the checkpoint (did you mean"),
        ("x: {op: relu, from: x}", "'x' is an input and a layer"),
        ("'a[0:3]': {op: relu, from: x}", "no name for a layer"),
        ("' ': {op: relu, from: x}", "no name for a layer"),
        ("fc1: {op: linear, from: x, layers: {}}", "no setting 'layers'"),
        ("fc2: {op: linear, from: x}", "net.yaml:4: layer 'fc2' (linear): fc2.weight"),
    ],
)
def test_layers_that_are_wrong(body: str, message: str) -> None:
    found = failure(layers(body, outputs="[x]"))
    assert found.startswith("net.yaml:")
    if "fc2.weight" not in message:
        assert message in found
    else:
        assert "net.yaml:4: layer 'fc2' (linear): weight has 6 where 4 are expected" in found


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ("[fc3]", "net.yaml:7: 'outputs' reads 'fc3', which is no layer (did you mean"),
        ("[[fc2]]", "'outputs' should name a layer here"),
        ("['fc2[0]']", "'fc2' has one output; a range of units is written 'fc2[0:1]'"),
    ],
)
def test_outputs_that_are_wrong(outputs: str, message: str) -> None:
    assert message in failure(GOOD.replace("[fc2]", outputs))


def test_cycles() -> None:
    text = """
        a: {op: add, from: [x, c]}
        b: {op: relu, from: a}
        c: {op: relu, from: b}
    """
    assert "the layers form a cycle: a -> c -> b -> a" in failure(layers(text, outputs="[c]"))
    assert "net.yaml:4: the layers form a cycle: a -> a" in failure(layers("a: {op: relu, from: a}", outputs="[a]"))
    sliced = layers('a: {op: relu, from: "a[0:2]"}', outputs="[a]")
    assert "form a cycle" in failure(sliced)


def test_layers_in_any_order() -> None:
    lines = GOOD.splitlines()
    lines[3], lines[5] = lines[5], lines[3]
    assert [node.name for node in graph("\n".join(lines)).nodes] == ["fc1", "act", "fc2"]
    chain = "\n".join(f"a{n}: {{op: relu, from: a{n + 1}}}" for n in range(3000)) + "\na3000: {op: relu, from: x}"
    assert len(graph(layers(chain, outputs="[a0]")).nodes) == 3001


def test_null_settings_are_the_defaults() -> None:
    text = layers(
        "p: {op: max_pool1d, from: x, kernel_size: 2, stride: null, padding: , params: , prefix: }",
        "{x: [1, 2, 8]}",
        "[p]",
    )
    assert solved(text).values["p"][0].shape == (1, 2, 4)


def test_numbers_that_yaml_reads_as_words() -> None:
    text = layers("n: {op: layer_norm, from: x, eps: 1e-5}", outputs="[n]")
    assert graph(text).node("n").attrs["eps"] == 1e-5
    assert "eps: 'small' should be float or int" in failure(text.replace("1e-5", "small"))


def test_words_that_yaml_reads_as_something_else() -> None:
    text = layers("on: {op: relu, from: x}\n1: {op: relu, from: on}\nno: {op: relu, from: 1}", outputs="[no]")
    assert [node.name for node in graph(text).nodes] == ["on", "1", "no"]


# -- parameters --------------------------------------------------------------------------------------------


def test_params() -> None:
    shapes = {"w": (6, 4), "body.fc.weight": (6, 6), "body.fc.bias": (6,), "bias": (6,)}
    text = """
        a: {op: linear, from: x, params: {weight: w}}
        b: {op: linear, from: a, prefix: body.fc.}
        c: {op: linear, from: b, prefix: body.fc., params: {bias: null}}
        d: {op: linear, from: c, params: {weight: body.fc.weight, bias: bias}}
        e: {op: linear, from: d, prefix: "", params: {weight: body.fc.weight}}
    """
    found = graph(layers(text, outputs="[e]"), shapes)
    assert found.node("a").params == {"weight": "w"}
    assert found.node("b").params == {"weight": "body.fc.weight", "bias": "body.fc.bias"}
    assert found.node("c").params == {"weight": "body.fc.weight"}
    assert found.node("d").params == {"weight": "body.fc.weight", "bias": "bias"}
    assert found.node("e").params == {"weight": "body.fc.weight", "bias": "bias"}


def test_tensors_that_no_layer_has() -> None:
    shapes = {**MLP, "extra.weight": (3, 3), "bn.num_batches_tracked": (), "rope.inv_freq": (4,)}
    topology = solved(GOOD, shapes)
    assert topology.unclaimed == ("extra.weight", "rope.inv_freq")
    with pytest.raises(SpecError, match=r"no layer has these tensors.*: extra\.weight, rope\.inv_freq\. "):
        require_complete(topology)
    ignored = solved(GOOD + "ignore: ['*.inv_freq', extra.*]\n", shapes)
    assert ignored.unclaimed == ()
    require_complete(ignored)
    assert solved(GOOD + "ignore: extra.*\n", shapes).unclaimed == ("rope.inv_freq",)
    many = solved(GOOD, {**MLP, **{f"t{n}": (1,) for n in range(8)}})
    with pytest.raises(SpecError, match="t4 and 3 more"):
        require_complete(many)


# -- ranges ------------------------------------------------------------------------------------------------

PARTS = {"a.weight": (6, 4), "b.weight": (3, 4), "t.weight": (2, 9)}


def parts(ranges: str) -> str:
    text = f"a: {{op: linear, from: x}}\nb: {{op: linear, from: x}}\nt:\n  op: linear\n  from: {ranges}"
    return layers(text, outputs="[t]")


def test_ranges() -> None:
    for ranges in ('{"0:6": a, "6:9": b}', '{"6:9": b, "0:6": a}', "{0:6: a, 6:9: b}", '{" 0 : 6 ": a, "6:9": b}'):
        topology = solved(parts(ranges), PARTS)
        assert topology.tensor_text("t.weight") == "t  a + b"
        assert [node.name for node in topology.graph.nodes] == ["a", "b", "t.from", "t"]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ('{"0:6": a, "7:9": b}', "net.yaml:8: layer 't': nothing feeds the range 6:7"),
        ('{"1:6": a, "6:9": b}', "nothing feeds the range 0:1"),
        ('{"0:6": a, "5:9": b}', "the ranges overlap between 5 and 6"),
        ('{"0:9": a, "2:4": b}', "the ranges overlap between 2 and 4"),
        ('{"0:6": a, "0:6 ": b}', "the ranges overlap between 0 and 6"),
        ('{"0:6": a, "6:6": b}', "the range '6:6' is empty"),
        ('{"0:6": a, "9:6": b}', "the range '9:6' is empty"),
        ('{"0:6": a, "six": b}', "net.yaml:8: layer 't': 'six' is no range; write '0:64'"),
        ('{"0:6": a, "-3:9": b}', "'-3:9' is no range"),
        ('{"0:6": a, "6:": b}', "'6:' is no range"),
        ('{"0:6": a, "6:99999999999999999999": b}', "is no range"),
        ('{"0:5": a, "5:9": b}', "reads 0:5 (5 units) from 'a', which has 6"),
        ('{"0:6": a, "6:9": c}', "'t' reads 'c', which is no layer"),
        ('{"0:6": a, "6:9": [b]}', "should name a layer here"),
        ('{"0:6": a}', "weight has 9 where 6 are expected"),
    ],
)
def test_ranges_that_are_wrong(ranges: str, message: str) -> None:
    found = failure(parts(ranges), PARTS)
    assert message in found and found.startswith("net.yaml:")


def test_a_layer_called_like_what_ranges_join() -> None:
    text = layers('t.from: {op: relu, from: x}\nt: {op: relu, from: {"0:4": t.from}}', outputs="[t]")
    assert "call that layer otherwise" in failure(text)


def test_slices() -> None:
    text = """
        fc1: {op: linear, from: x}
        p: {op: relu, from: "fc1[0:2]"}
        q: {op: relu, from: "fc1[:2]"}
        r: {op: relu, from: "fc1[2:]"}
        s: {op: add, from: ["fc1[2:6]", r]}
        t: {op: relu, from: "x[1:3]"}
    """
    topology = solved(layers(text, outputs="[p, q, s, t, 'fc1[0:1]']"))
    sizes = {node.name: topology.values[node.name][0].shape[1] for node in topology.graph.nodes}
    assert sizes == {
        "fc1": 6,
        "fc1[0:2]": 2,
        "fc1[2:]": 4,
        "fc1[2:6]": 4,
        "x[1:3]": 2,
        "fc1[0:1]": 1,
        "p": 2,
        "q": 2,
        "r": 4,
        "s": 4,
        "t": 2,
    }
    shared = topology.graph.node("fc1[0:2]")
    assert [mark.line for key, mark in sorted(shared.marks.items()) if key.startswith("range")] == [5, 6]


def test_places_of_ranges_can_be_rewritten() -> None:
    text = (
        layers(
            """
        fc1: {op: linear, from: x}
        p: {op: relu, from: "fc1[0:2]"}
        q: {op: add, from: [p, 'fc1[:2]']}
        r:
          op: relu
          from: fc1[2:]
        t: {op: slice, from: fc1, start: 1, stop: 3}
        u: {op: reshape, from: fc1, shape: [0, 3, heads]}
        v: {op: cat, from: {"0:6": fc1, "6:8": p}}
    """,
            outputs="[q, r, t, u, v]",
        )
        + "dims: {heads: 2}\n"
    )
    found = graph(text)
    stated = {
        (node.name, key): text[mark.start : mark.end]
        for node in found.nodes
        for key, mark in node.marks.items()
        if key.startswith(("range", "attr:")) or "[" in key
    }
    assert stated == {
        ("fc1[0:2]", "range"): "0:2",
        ("fc1[0:2]", "range+1"): ":2",
        ("fc1[2:]", "range"): "2:",
        ("t", "attr:start"): "1",
        ("t", "attr:stop"): "3",
        ("u", "attr:shape"): "[0, 3, heads]",
        ("u", "shape[0]"): "0",
        ("u", "shape[1]"): "3",
        ("u", "shape[2]"): "heads",
        ("v.from", "range:0"): '"0:6"',
        ("v.from", "range:1"): '"6:8"',
    }
    sites = {(site.node, site.what) for site in solve(found, infos(MLP)).sites if site.mark is None}
    assert sites == set(), "every number that follows a width has its place in the spec"


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("fc1[0:9]", "net.yaml:5: layer 'fc1[0:9]' (slice): the range 0:9 is not inside its source, which has 6 units"),
        ("fc1[3:3]", "3:3 is not inside"),
        ("fc1[4:2]", "4:2 is not inside"),
        ("fc1[0]", "'fc1' has one output; a range of units is written 'fc1[0:1]'"),
        ("fc9[0:2]", "reads 'fc9', which is no layer (did you mean 'fc1'?)"),
        ("fc1[a:b]", "which is no layer"),
        ("fc1[-2:]", "which is no layer"),
        ("fc1[0:99999999999999999]", "which is no layer"),
        ("[0:2]", "which is no layer"),
    ],
)
def test_slices_that_are_wrong(ref: str, message: str) -> None:
    text = layers(f'fc1: {{op: linear, from: x}}\np: {{op: relu, from: "{ref}"}}', outputs="[p]")
    assert message in failure(text)


def test_several_outputs() -> None:
    text = """
        fc1: {op: linear, from: x}
        c: {op: chunk, from: fc1, chunks: 2}
        p: {op: mul, from: ["c[0]", "c[1]"]}
    """
    assert solved(layers(text, outputs="[p, 'c[1]']")).values["p"][0].shape == (3, 3)
    assert "'c' has several outputs; choose one: 'c[0]'" in failure(layers(text.replace('"c[1]"', "c"), outputs="[p]"))
    assert "has several outputs; choose one" in failure(layers(text.replace("c[1]", "c[0:2]"), outputs="[p]"))
    found = failure(layers(text.replace("c[1]", "c[2]"), outputs="[p]"))
    assert "net.yaml:6: layer 'p' (mul): reads 'c[2]', but 'c' has 2 outputs, counted from 0" in found
    assert "outputs: reads 'c[7]'" in failure(layers(text, outputs="['c[7]']"))


# -- blocks ------------------------------------------------------------------------------------------------

STACK = {"in.weight": (6, 4), "b.0.f.weight": (6, 6), "b.1.f.weight": (6, 6), "b.0.g.w": (6, 6), "b.1.g.w": (6, 6)}
BLOCK = """
    in: {op: linear, from: x}
    "b.{i}":
      repeat: auto
      from: in
      layers:
        f: {op: linear, from: in}
        g: {op: linear, from: f, params: {weight: "b.{i}.g.w"}}
        sum: {op: add, from: [in, g]}
      output: sum
    out: {op: relu, from: b}
    one: {op: relu, from: "b.{i}"}
    first: {op: relu, from: "b.0.f[0:2]"}
"""


def test_blocks() -> None:
    for text in (BLOCK, BLOCK.replace("auto", "2")):
        topology = solved(layers(text, outputs="[out, one, first]"), STACK)
        names = [node.name for node in topology.graph.nodes if not node.hidden]
        blocks = [f"b.{n}.{part}" for n in (0, 1) for part in ("f", "g", "sum")]
        assert names == ["in", *blocks, "out", "one", "first"]
        node = topology.graph.node
        assert [str(ref) for ref in node("b.0.sum").inputs] == ["in", "b.0.g"]
        assert [str(ref) for ref in node("b.1.sum").inputs] == ["b.0.sum", "b.1.g"]
        assert str(node("out").inputs[0]) == str(node("one").inputs[0]) == "b.1.sum"
        assert node("b.1.g").params == {"weight": "b.1.g.w"}
        assert topology.unclaimed == ()


def test_blocks_read_one_another_and_what_is_outside() -> None:
    shapes = {"b.0.f.weight": (4, 4), "b.1.f.weight": (4, 4), "c.0.f.weight": (4, 4)}
    text = """
        outer: {op: relu, from: x}
        "b.{i}":
          repeat: auto
          from: outer
          layers: {f: {op: linear, from: in}, s: {op: add, from: [f, outer]}}
          output: s
        "c.{i}":
          repeat: auto
          from: b
          layers: {f: {op: linear, from: in}, other: {op: relu, from: "b.{i}.f"}}
          output: f
        end: {op: relu, from: c}
    """
    found = graph(layers(text, outputs="[end]"), shapes)
    assert [str(ref) for ref in found.node("b.1.s").inputs] == ["b.1.f", "outer"]
    assert str(found.node("c.0.f").inputs[0]) == "b.1.s"
    assert str(found.node("c.0.other").inputs[0]) == "b.0.f"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"b.{i}":', "b:", "net.yaml:5: block 'b' has `repeat:`; its name needs {i}, as in 'layers.{i}'"),
        ("repeat: auto", "repeat: 0", "net.yaml:6: `repeat:` of 'b.{i}' must be a number or auto, found 0"),
        ("repeat: auto", "repeat: twice", "found 'twice'"),
        ("repeat: auto", "repeat: yes", "found True"),
        ("repeat: auto", "repeat: 10001", "found 10001"),
        ("repeat: auto", "repeat: [2]", "found [2]"),
        ("repeat: auto", "repeat: 3", "there is no tensor 'b.2.f.weight'"),
        (
            "      output: sum",
            "      outputs: sum",
            "block 'b.{i}' has repeat, from, layers, output, start, not 'outputs'",
        ),
        ("      output: sum\n", "", "net.yaml:5: block 'b.{i}' lacks `output:`"),
        ("output: sum", "output: total", "names 'total', which is no layer of it"),
        ("output: sum", "output: [sum]", "`output:` of block 'b.{i}' must name one layer"),
        ("from: in\n      layers", "from: [in, in]\n      layers", "`from:` of block 'b.{i}' must name one layer"),
        ("from: in\n      layers", "from: inn\n      layers", "reads 'inn', which is no layer"),
        ("f: {op: linear, from: in}", "f: {repeat: 2}", "net.yaml:9: block 'f' is inside block 'b.{i}'"),
        ("f: {op: linear, from: in}", "f: {op: linear, from: g}", "form a cycle"),
        ("f: {op: linear, from: in}", "f: {op: linear, from: out}", "form a cycle"),
        ("out: {op", "b: {op", "'b' is a layer and stands for a block's end"),
        ("out: {op", "b.0.f: {op", "layer 'b.0.f' is given twice"),
    ],
)
def test_blocks_that_are_wrong(old: str, new: str, message: str) -> None:
    assert old in BLOCK
    text = layers(BLOCK.replace(old, new), outputs="[first]")
    found = failure(text, STACK)
    assert message in found and found.startswith("net.yaml")


def test_blocks_that_the_checkpoint_does_not_count() -> None:
    gap = {name.replace("b.1", "b.2"): shape for name, shape in STACK.items()}
    assert "do not count the blocks 'b.{i}': found [0, 2]" in failure(layers(BLOCK, outputs="[out]"), gap)
    assert "found []" in failure(layers(BLOCK, outputs="[out]"), {"in.weight": (6, 4)})


def test_layers_of_blocks_must_be_a_mapping() -> None:
    text = '"b.{i}": {repeat: 2, from: x, output: r, layers: [r]}'
    assert "net.yaml:4: `layers:` of block 'b.{i}' must be a mapping" in failure(layers(text))


# -- names of widths -----------------------------------------------------------------------------------------


def names(topology: Topology) -> dict[str, int]:
    return {info.name: info.size for info in topology.widths.values() if info.frozen is None}


def test_a_width_is_called_as_its_first_producer() -> None:
    assert names(solved(GOOD)) == {"fc1": 6}
    found = solved(GOOD).by_name("fc1")
    assert found is not None and (found.producers, found.consumers) == (("fc1",), ("fc2",))


def test_widths_of_one_layer_are_called_by_their_range() -> None:
    net = network(
        {
            "core": linear("x", 4, 24),
            "a": linear("core[0:12]", 12, 2),
            "b": linear("core[12:24]", 12, 2),
        },
        {"x": ["batch", 4]},
        ["a", "b"],
    )
    assert names(net.topology) == {"core[0:12]": 12, "core[12:24]": 12}
    assert net.topology.tensor_text("core.weight") == "core[0:12] + core[12:24]  x"
    assert net.topology.by_name("core") is None


def test_factors_are_called_as_the_dims_that_name_them() -> None:
    net = network(
        {
            "q_proj": linear("x", 4, 24, bias=False),
            "grid": layer("reshape", "q_proj", shape=[0, 0, "kv_heads", "groups", -1]),
            "flat": layer("flatten", "grid", start=2),
            "out": linear("flat", 24, 2),
        },
        {"x": ["batch", "time", 4]},
        ["out"],
        dims={"kv_heads": 2, "groups": 3},
    )
    assert names(net.topology) == {"q_proj.kv_heads": 2, "q_proj.groups": 3, "q_proj.2": 4}
    assert net.topology.tensor_text("out.weight") == "out  (q_proj.kv_heads q_proj.groups q_proj.2)"


def test_a_flattened_layer_keeps_its_name() -> None:
    net = network(
        {"c": layer("conv2d", "x", {"weight": (5, 2, 3, 3)}), "f": layer("flatten", "c"), "out": linear("f", 80, 2)},
        {"x": ["batch", 2, 6, 6]},
        ["out"],
    )
    assert names(net.topology) == {"c": 5}
    assert net.topology.tensor_text("out.weight") == "out  (c 16)"


def test_names_are_unique() -> None:
    net = network(
        {
            "a": linear("x", 4, 6),
            "turned": layer("transpose", "a", axes=[1, 2]),
            "b": {**linear("turned", 3, 6), "prefix": "b."},
            "gram": layer("permute", "b", axes=[0, 2, 1]),
            "out": linear("gram", 6, 2),
        },
        {"x": ["batch", 3, 4]},
        ["out"],
    )
    found = [info.name for info in net.topology.widths.values()]
    assert len(set(found)) == len(found)


def test_a_long_chain_is_solved_quickly() -> None:
    shapes = {f"f{n}.weight": (8, 8) for n in range(400)}
    lines = [
        f"f{n}: {{op: linear, from: {f'a{n - 1}' if n else 'x'}}}\na{n}: {{op: relu, from: f{n}}}" for n in range(400)
    ]
    topology = solved(layers("\n".join(lines), "{x: [batch, 8]}", "[a399]"), shapes)
    assert len(names(topology)) == 399


# -- settings by block, blocks from a number on, config ----------------------------------------------------


def test_a_setting_for_each_block() -> None:
    text = BLOCK.replace(
        "f: {op: linear, from: in}",
        "f: {op: linear, from: in}\n        n: {op: layer_norm, from: f, eps: {each: [0.1, 0.2]}}",
    )
    built = parse_spec(layers(text, outputs="[first]"), "net.yaml").graph(infos(STACK))
    assert [built.node(f"b.{i}.n").attrs["eps"] for i in range(2)] == [0.1, 0.2]
    found = failure(layers(text.replace("[0.1, 0.2]", "[0.1]"), outputs="[first]"), STACK)
    assert "`eps: {each: ...}` has 1 values for 2 blocks" in found


def test_blocks_from_a_number_on() -> None:
    """The first one, of another form, stands by itself; there may be no others."""
    text = """
        in: {op: linear, from: x}
        b.0.f: {op: linear, from: in}
        "b.{i}":
          repeat: auto
          start: 1
          from: b.0.f
          layers:
            f: {op: linear, from: in}
          output: f
        out: {op: relu, from: "b.{i}"}
    """
    shapes = {"in.weight": (6, 4), "b.0.f.weight": (5, 6), "b.1.f.weight": (5, 5), "b.2.f.weight": (5, 5)}
    for count, last in ((4, "b.2.f"), (2, "b.0.f")):
        some = dict(list(shapes.items())[:count])
        built = parse_spec(layers(text, outputs="[out]"), "net.yaml").graph(infos(some))
        assert built.node("out").inputs[0].node == last
    found = failure(layers(text.replace("start: 1", "start: one"), outputs="[out]"), shapes)
    assert "`start:` of 'b.{i}' must be a number, found 'one'" in found


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[fc1]", "`config:` must map keys"),
        ("{size: 3}", "config: size: a place is text, as in fc.weight[0] or norm.eps, found 3"),
        ("{size: []}", "config: size: `at:` names no place"),
        ("{size: {default: 3}}", "config: size: it lacks `at:`"),
        ("{size: {at: a.eps, or: 3}}", "config: size: it takes at, default, multiple_of, not 'or'"),
        ("{size: {at: a.eps, multiple_of: 3}}", "`multiple_of:` names another key, found 3"),
    ],
)
def test_config_that_is_wrong(config: str, message: str) -> None:
    assert message in failure(f"{GOOD}config: {config}\n")


def test_what_config_says() -> None:
    spec = parse_spec(
        f"{GOOD}config: {{a: 'fc1.weight[0]', b: {{at: [x.eps, y.eps / 2], default: 4 * a}}}}\n", "net.yaml"
    )
    one, other = spec.config
    assert (one.key, [place.text for place in one.at]) == ("a", ["fc1.weight[0]"])
    assert other.at[1].words == ("y.eps",) and other.at[1].value({"y.eps": 6}.__getitem__) == 3
    assert other.default is not None and other.default.value({"a": 3}.__getitem__) == 12
