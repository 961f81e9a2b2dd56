"""`diff` and `convert`, called as functions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from netgrow_cli.checkpoint import open_checkpoint
from netgrow_cli.checkpoint.compare import compare
from netgrow_cli.checkpoint.numbers import _FLOAT8, _float8_table
from netgrow_cli.checkpoint.values import difference
from netgrow_cli.commands.convert import convert
from netgrow_cli.commands.diff import diff
from netgrow_cli.errors import CheckpointError, UsageError
from netgrow_cli.report.diff_table import render

State = dict[str, torch.Tensor]


def put(path: Path, state: Any) -> str:
    """Save by the ending."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def run_json(capsys: pytest.CaptureFixture[str], a: str, b: str, **options: Any) -> tuple[int, Any]:
    code = diff(a, b, as_json=True, **options)
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count("\n") == 1
    return code, json.loads(captured.out)


@pytest.fixture(params=[".pt", ".safetensors"])
def ending(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def old_and_new() -> tuple[State, State]:
    old = {"fc1.weight": torch.zeros(4, 3), "fc1.bias": torch.zeros(4), "gone": torch.zeros(2), "n": torch.zeros(1)}
    new = {"fc1.weight": torch.zeros(6, 3), "fc1.bias": torch.zeros(6), "n": torch.zeros(1), "more": torch.zeros(2)}
    return old, new


def test_json_of_a_difference(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = old_and_new()
    code, found = run_json(capsys, put(tmp_path / f"a{ending}", old), put(tmp_path / f"b{ending}", new))
    assert code == 1
    assert found["same"] is False
    assert sorted(found["changed"], key=lambda change: change["name"]) == [
        {"name": "fc1.bias", "a": [4], "b": [6]},
        {"name": "fc1.weight", "a": [4, 3], "b": [6, 3]},
    ]
    assert (found["only_a"], found["only_b"]) == (["gone"], ["more"])
    assert list(found) == ["same", "changed", "only_a", "only_b"]


def test_the_same_in_two_formats_and_wrappings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = old_and_new()
    wrapped = {"epoch": 1, "model": {f"module.{name}": tensor for name, tensor in state.items()}}
    a, b = put(tmp_path / "a.safetensors", state), put(tmp_path / "b.pt", wrapped)
    expected = {"same": True, "changed": [], "only_a": [], "only_b": []}
    assert run_json(capsys, a, b) == (0, expected)
    assert run_json(capsys, a, b, values=True) == (0, expected)
    assert diff(a, b) == 0
    assert "same: shapes and dtypes of all 4 tensors (values not compared" in capsys.readouterr().out
    assert diff(a, b, values=True) == 0
    assert "same: shapes, dtypes and values of all 4 tensors\n" in capsys.readouterr().out


def test_a_dtype_that_changed(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    a = put(tmp_path / f"a{ending}", {"w": torch.zeros(2)})
    b = put(tmp_path / f"b{ending}", {"w": torch.zeros(2).bfloat16()})
    for values in (False, True):
        code, found = run_json(capsys, a, b, values=values)
        assert code == 1
        assert found["changed"] == [{"name": "w", "a": [2], "b": [2], "a_dtype": "F32", "b_dtype": "BF16"}]


def test_values(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"w": torch.zeros(3, 4), "same": torch.ones(2)}
    new = {"w": torch.zeros(3, 4), "same": torch.ones(2)}
    new["w"][1, 2], new["w"][0, 0] = -0.5, 0.25
    a, b = put(tmp_path / f"a{ending}", old), put(tmp_path / f"b{ending}", new)
    assert run_json(capsys, a, b)[0] == 0
    code, found = run_json(capsys, a, b, values=True)
    assert code == 1
    assert found["changed"] == [{"name": "w", "a": [3, 4], "b": [3, 4], "values": {"max_abs": 0.5, "differing": 2}}]
    assert diff(a, b, values=True) == 1
    assert "2 of 12 values differ, by at most 0.5" in capsys.readouterr().out


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_differences_of_every_dtype_are_torchs(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = (torch.rand(50).mul(100 if not dtype.is_complex else 1).to(dtype) for _ in range(2))
    b[:20] = a[:20]
    with (
        open_checkpoint(Path(put(tmp_path / "a.pt", {"w": a}))) as left,
        open_checkpoint(Path(put(tmp_path / "b.pt", {"w": b}))) as right,
    ):
        report = compare(left, right, values=True)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    if dtype == torch.bool:
        assert report.same == bool((a == b).all())
        return
    (change,) = report.changed
    assert change.values is not None
    assert change.values.max_abs == pytest.approx((a.to(wide) - b.to(wide)).abs().max().item(), rel=1e-15)
    assert change.values.differing == (a.to(wide) != b.to(wide)).sum().item()


@pytest.mark.parametrize("name", _FLOAT8)
def test_float8_tables_are_torchs(name: str) -> None:
    theirs = {"F8_E4M3": "float8_e4m3fn"}.get(name, "float8_" + name[3:].lower())
    expected = torch.arange(256, dtype=torch.uint8).view(getattr(torch, theirs)).double()
    found = torch.from_numpy(_float8_table(*_FLOAT8[name]))
    assert torch.equal(found.nan_to_num(nan=12345.0), expected.nan_to_num(nan=12345.0))


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def test_differences_that_are_no_finite_numbers() -> None:
    inf, nan = float("inf"), float("nan")
    a, b = torch.tensor([inf, nan, 1.0, 0.0]), torch.tensor([1.0, 2.0, inf, -0.0])
    found = difference("F32", raw(a), raw(b))
    assert found is not None and (found.max_abs, found.differing) == (0.0, 4)
    only = difference("F32", raw(a[:1]), raw(b[:1]))
    assert only is not None and (only.max_abs, only.differing) == (None, 1)
    assert difference("F32", raw(a), raw(a)) is None


def test_large_integers_are_compared_exactly() -> None:
    a, b = torch.tensor([2**62, -(2**63)]), torch.tensor([2**62 + 1, 2**63 - 1])
    first, both = difference("I64", raw(a[:1]), raw(b[:1])), difference("I64", raw(a), raw(b))
    assert first is not None and first.max_abs == 1
    assert both is not None and both.max_abs == 2**64 - 1


def test_long_tensors_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netgrow_cli.checkpoint.values._CHUNK", 7)
    a = torch.arange(100.0)
    b = a.clone()
    b[[3, 50, 99]] += torch.tensor([1.0, 5.0, 2.0])
    found = difference("F32", raw(a), raw(b))
    assert found is not None and (found.max_abs, found.differing) == (5.0, 3)


def test_quantised_tensors_with_other_scales_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = [
            {"w": torch.quantize_per_tensor(torch.ones(2) * scale, scale, 0, torch.qint8)} for scale in (0.5, 0.25)
        ]
        a, b = put(tmp_path / "a.pt", states[0]), put(tmp_path / "b.pt", states[1])
    assert run_json(capsys, a, b)[0] == 0
    code, found = run_json(capsys, a, b, values=True)
    assert code == 1 and found["changed"][0]["values"]["max_abs"] is None


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = old_and_new()
    a, b = put(tmp_path / "a.pt", {"model": old}), put(tmp_path / "b.pt", new)
    assert diff(a, b) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out == (
        f"A  {a}  torch: model  4 tensors  19 parameters   76 B\n"
        f"B  {b}  torch         4 tensors  27 parameters  108 B\n"
        f"   {' ' * len(a)}                           +8 parameters  +32 B\n"
        "\n"
        "~ fc1.weight  [4, 3]  → [6, 3]\n"
        "~ fc1.bias    [4]     → [6]\n"
        "- gone        [2] F32\n"
        "+ more                  [2] F32\n"
        "\n"
        "different: 2 changed, 1 only in A, 1 only in B, 1 the same in shape and dtype\n"
    )


def test_colour_marks_the_sizes_that_changed(tmp_path: Path) -> None:
    old, new = old_and_new()
    with (
        open_checkpoint(Path(put(tmp_path / "a.pt", old))) as left,
        open_checkpoint(Path(put(tmp_path / "b.pt", new))) as right,
    ):
        report = compare(left, right, values=False)
    coloured, plain = render(report, colour=True), render(report, colour=False)
    assert "[\x1b[1;33m4\x1b[0m, 3]" in coloured and "[\x1b[1;33m6\x1b[0m, 3]" in coloured
    import re

    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_colour_only_on_a_terminal_and_without_no_color(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new()
    a, b = put(tmp_path / "a.pt", old), put(tmp_path / "b.pt", new)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    diff(a, b)
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    diff(a, b)
    assert "\x1b[" not in capsys.readouterr().out


def blocks(width: int, layers: list[int], experts: int = 0) -> State:
    state = {"embed": torch.zeros(5, 4)}
    for i in layers:
        state[f"model.layers.{i}.mlp.up_proj.weight"] = torch.zeros(width, 4)
        state[f"model.layers.{i}.mlp.down_proj.weight"] = torch.zeros(4, width)
        for j in range(experts):
            state[f"model.layers.{i}.experts.{j}.w"] = torch.zeros(width)
    return state


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_repeated_blocks_take_one_line(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [*range(12), 15, 20, 21]
    a = put(tmp_path / f"a{ending}", blocks(8, layers, experts=4))
    b = put(tmp_path / f"b{ending}", blocks(10, layers, experts=4))
    diff(a, b)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("~")]
    assert sorted(lines) == sorted(
        [
            ["~", "model.layers.{0-11,15,20-21}.mlp.up_proj.weight", *"[8, 4] → [10, 4] ×15".split()],
            ["~", "model.layers.{0-11,15,20-21}.mlp.down_proj.weight", *"[4, 8] → [4, 10] ×15".split()],
            ["~", "model.layers.{0-11,15,20-21}.experts.{0-3}.w", *"[8] → [10] ×60".split()],
        ]
    )
    assert len(run_json(capsys, a, b)[1]["changed"]) == 15 * 6


def test_blocks_that_changed_differently_stay_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = blocks(10, list(range(6)))
    new["model.layers.3.mlp.up_proj.weight"] = torch.zeros(9, 4)
    diff(put(tmp_path / "a.pt", blocks(8, list(range(6)))), put(tmp_path / "b.pt", new))
    out = capsys.readouterr().out
    assert "model.layers.{0-2,4-5}.mlp.up_proj.weight" in out
    assert "model.layers.3.mlp.up_proj.weight " in out


def test_names_are_shown_as_they_are_and_never_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["b.01", "b.02", "b.03", "\x1b[2J", "", "../x"]
    a = put(tmp_path / "a.safetensors", {name: torch.zeros(2) for name in names})
    b = put(tmp_path / "b.safetensors", {name: torch.zeros(3) for name in names})
    diff(a, b)
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("~")]
    assert sorted(shown) == sorted(["b.01", "b.02", "b.03", r"'\x1b[2J'", "''", "../x"])


def test_long_differences_are_printed_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"layer_{chr(97 + i)}{chr(97 + j)}" for i in range(10) for j in range(10)]
    a = put(tmp_path / "a.pt", {name: torch.zeros(2) for name in names})
    b = put(tmp_path / "b.pt", {name: torch.zeros(3) for name in names})
    diff(a, b)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("~")] == names


def test_errors_are_raised(tmp_path: Path) -> None:
    a = put(tmp_path / "a.pt", {"w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="does not exist"):
        diff(a, str(tmp_path / "missing.pt"))
    both = put(tmp_path / "b.pt", {"actor": {"w": torch.zeros(1)}, "critic": {"w": torch.zeros(2)}})
    with pytest.raises(CheckpointError, match="several state dicts"):
        diff(both, both)
    assert diff(both, both, key="critic") == 0


def test_diff_of_safetensors_imports_nothing_heavy(tmp_path: Path) -> None:
    old, new = old_and_new()
    a, b = put(tmp_path / "a.safetensors", old), put(tmp_path / "b.safetensors", new)
    code = (
        "import sys; from netgrow_cli.commands.diff import diff\n"
        "code = diff(*sys.argv[1:3], values=sys.argv[3] == 'values')\n"
        "heavy = {'torch', 'rich', 'typer', 'safetensors', 'numpy'} & set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    c = put(tmp_path / "c.safetensors", {name: tensor + 1 for name, tensor in old.items()})
    for other, values, expected in ((b, "", "1 []"), (a, "values", "0 []"), (c, "values", "1 ['numpy']")):
        done = subprocess.run([sys.executable, "-c", code, a, other, values], capture_output=True, text=True)
        assert done.stderr == f"{expected}\n"


def tied_checkpoint() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "norm": nn.BatchNorm1d(4), "head": nn.Linear(4, 6)})
    model["head"].weight = model["embed"].weight
    return model, {"epoch": 3, "agent": {"model": model.state_dict(), "step": 7}, "optimizer": {"lr": 0.1}}


def test_to_safetensors_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, checkpoint = tied_checkpoint()
    source = put(tmp_path / "in.pt", checkpoint)
    middle, back = str(tmp_path / "mid.safetensors"), str(tmp_path / "back.pt")
    assert convert(source, middle) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{middle}\n"
    assert "note: head.weight is tied to embed.weight; safetensors holds it as a copy" in captured.err
    assert "left out: epoch, agent.step, optimizer" in captured.err
    with safe_open(middle, "pt") as file:
        assert file.metadata() == {"format": "pt", "netgrow.tied": '{"head.weight": "embed.weight"}'}
    loaded = load_file(middle)
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())

    assert convert(middle, back) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{back}\n", "")
    state = torch.load(back, weights_only=True)
    assert type(state) is OrderedDict
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()
    model.load_state_dict(state, strict=True)


def test_names_keep_their_wrappers(tmp_path: Path) -> None:
    source = put(tmp_path / "in.pt", {"module.w": torch.ones(2), "module.b": torch.ones(1)})
    convert(source, str(tmp_path / "out.safetensors"))
    assert set(load_file(tmp_path / "out.safetensors")) == {"module.w", "module.b"}


def test_json_of_a_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "in.pt", {"state_dict": {"w": torch.ones(2), "note": "x"}, "epoch": 1})
    output = str(tmp_path / "out.safetensors")
    assert convert(source, output, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {
        "command": "convert",
        "input": source,
        "output": output,
        "tensors": 1,
        "dropped": ["state_dict.note", "epoch"],
    }


def test_metadata_that_torch_has_no_place_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "in.safetensors", {"format": "pt", "author": "me"})
    convert(str(tmp_path / "in.safetensors"), str(tmp_path / "out.pth"), as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["dropped"] == ["metadata author"]
    assert "metadata author" in captured.err


@pytest.mark.parametrize(
    ("recorded", "warning"),
    [
        ('{"b": "a"}', "b was tied to a and differs from it now"),
        ("not JSON", "not readable"),
        ('["a"]', "not readable"),
        ('{"b": 1}', "not readable"),
        ('{"b": "missing"}', ""),
        ('{"b": "a", "a": "b"}', ""),
    ],
)
def test_ties_that_do_not_hold_are_not_restored(
    tmp_path: Path, recorded: str, warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / "in.safetensors", {"netgrow.tied": recorded})
    convert(str(tmp_path / "in.safetensors"), str(tmp_path / "out.bin"))
    err = capsys.readouterr().err
    assert warning in err and bool(warning) == bool(err)
    state = torch.load(tmp_path / "out.bin", weights_only=True)
    assert torch.equal(state["a"], torch.ones(2)) and torch.equal(state["b"], torch.zeros(2))


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = put(tmp_path / "in.pt", {"w": torch.ones(2, dtype=torch.complex128)})
    with pytest.raises(CheckpointError, match="'w' is C128, which safetensors cannot hold"):
        convert(source, str(tmp_path / "out.safetensors"))
    header = b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    (tmp_path / "f6.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    with pytest.raises(CheckpointError, match=r"'a' is F6_E2M3 \[4\], which torch cannot hold"):
        convert(str(tmp_path / "f6.safetensors"), str(tmp_path / "out.pt"))
    with pytest.raises(UsageError, match=r"is a torch file already; give an output that ends in \.safetensors"):
        convert(source, str(tmp_path / "out.pt"))
    with pytest.raises(UsageError, match=r"names no format; expected one of \.safetensors, \.pt"):
        convert(source, str(tmp_path / "out"))
    (tmp_path / "there.safetensors").write_bytes(b"old")
    with pytest.raises(UsageError, match="pass --force"):
        convert(source, str(tmp_path / "there.safetensors"))
    assert {path.name for path in tmp_path.iterdir()} == {"in.pt", "f6.safetensors", "there.safetensors"}
    assert (tmp_path / "there.safetensors").read_bytes() == b"old"


def test_force_replaces(tmp_path: Path) -> None:
    source = put(tmp_path / "in.pt", {"w": torch.ones(2)})
    (tmp_path / "there.safetensors").write_bytes(b"old")
    assert convert(source, str(tmp_path / "there.safetensors"), force=True) == 0
    assert torch.equal(load_file(tmp_path / "there.safetensors")["w"], torch.ones(2))
