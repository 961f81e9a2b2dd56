"""Bad input: one clear line, the right exit code, no traceback, no file left, the input untouched."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from .driver import CORE_SPEC, MLP_SPEC, Run, chain, contents, environment, program, save

Refused = Callable[..., str]

EXPAND = ("--layer", "fc1", "--add", "2")


def contains(line: str, *words: str) -> None:
    """The message names what was found and what to do."""
    for word in words:
        assert word in line, f"{word!r} is not in: {line}"


# -- files that are no checkpoints -------------------------------------------------------------------

COMMANDS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "inspect": lambda path: ("inspect", path),
    "check": lambda path: ("check", path),
    "infer": lambda path: ("infer", path),
    "expand": lambda path: ("expand", path, *EXPAND),
    "split": lambda path: ("split", path, "--layer", "fc1", "--units", "1"),
    "prune": lambda path: ("prune", path, "--layer", "fc1", "--units", "1"),
    "recycle": lambda path: ("recycle", path, "--layer", "fc1"),
    "diff": lambda path: ("diff", path, path),
    "verify": lambda path: ("verify", path, path),
    "convert": lambda path: ("convert", path, "-o", Path(path).parent / "converted.safetensors"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "words"),
    {
        "missing.pt": ("does not exist",),
        "empty.pt": ("empty",),
        "truncated.pt": ("truncated",),
        "truncated.safetensors": ("truncated",),
        "text.pt": ("not a checkpoint",),
        "folder.pt": ("directory",),
        "code.pt": ("code", "os", "state_dict"),
        "pickle.pkl": ("pickle", "torch.save"),
        "list.pt": ("list", "state dict"),
    }.items(),
)
def test_no_checkpoint(refused: Refused, tmp_path: Path, command: str, name: str, words: tuple[str, ...]) -> None:
    path, sentinel = tmp_path / name, tmp_path / "ran"

    class Code:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {sentinel}",)

    if name == "empty.pt":
        path.touch()
    elif name == "truncated.pt":
        whole = save(tmp_path / "whole.pt", chain(5, 6, 4, 3)).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "truncated.safetensors":
        path.write_bytes(save(tmp_path / "whole.safetensors", chain(5, 6, 4, 3)).read_bytes()[:-9])
    elif name == "text.pt":
        path.write_text("not what it says\n")
    elif name == "folder.pt":
        path.mkdir()
    elif name == "code.pt":
        torch.save({"fc1.weight": torch.zeros(2, 2), "fc1.bias": Code()}, path)
    elif name == "pickle.pkl":
        path.write_bytes(pickle.dumps(Code()))
    elif name == "list.pt":
        torch.save([1, 2], path)
    line = refused(2, *COMMANDS[command](path))
    contains(line, name, *words)
    assert not sentinel.exists()


def test_an_unreadable_file(refused: Refused, mlp: Path) -> None:
    mlp.chmod(0)
    if os.access(mlp, os.R_OK):
        pytest.skip("this user may read everything")
    contains(refused(2, "expand", mlp, *EXPAND), "ckpt.pt", "Permission denied")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no /proc")
def test_what_the_system_refuses(refused: Refused, mlp: Path) -> None:
    contains(refused(2, "inspect", "/proc/self/mem"), "/proc/self/mem", "cannot read")
    contains(refused(2, "expand", mlp, *EXPAND, "-o", "/proc/new.pt"), "cannot write /proc/new.pt")


@pytest.mark.parametrize("name", ["x" * 300, ""], ids=["long", "empty"])
def test_names_that_no_file_has(refused: Refused, name: str) -> None:
    for command in ("inspect", "expand"):
        contains(refused(2, *COMMANDS[command](name)), "too long" if name else "empty")


def test_standard_input_that_is_no_checkpoint(refused: Refused, mlp: Path) -> None:
    contains(refused(2, "inspect", "-", stdin=b""), "standard input", "empty")
    contains(refused(2, "check", "-", stdin=mlp.read_bytes()[:99]), "standard input", "truncated")
    contains(refused(2, "verify", "-", "-"), "standard input")
    contains(refused(2, "diff", "-", "-"), "standard input")
    line = refused(2, "expand", "-", *EXPAND, "--json", stdin=mlp.read_bytes(), json_too=False)
    contains(line, "--json", "-o")


def test_a_single_tensor_and_an_empty_dict(refused: Refused, tmp_path: Path) -> None:
    contains(refused(2, "inspect", save(tmp_path / "a.pt", torch.zeros(3))), "single tensor")
    contains(refused(2, "inspect", save(tmp_path / "b.pt", {})), "empty dict")
    contains(refused(2, "inspect", save(tmp_path / "c.pt", {"epoch": 3})), "'epoch'")


def test_several_state_dicts(refused: Refused, run: Run, tmp_path: Path) -> None:
    two = {"actor": chain(5, 6, 4, 3), "critic": chain(5, 6, 4, 3)}
    ckpt = save(tmp_path / "two.pt", two)
    contains(refused(2, "expand", ckpt, *EXPAND), "'actor'", "'critic'", "key")
    contains(refused(2, "expand", ckpt, *EXPAND, "--key", "actr"), "'actr'", "'actor'")
    assert run("expand", ckpt, *EXPAND, "--key", "actor").code == 0
    contains(refused(2, "expand", ckpt, *EXPAND, "--prefix", "net.", "--key", "actor"), "prefix", "net.")


# -- names and numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--layer", "fc9"), ("'fc9'", "did you mean", "'fc1'")),
        (("--layer", "FC1"), ("'FC1'", "did you mean", "'fc1'")),
        (("--layer", "zz*"), ("'zz*'", "fc1")),
        (("--layer", ""), ("''", "fc1")),
        (("--width", "fc3"), ("'fc3'", "did you mean", "inspect")),
        ((), ("--layer", "--width")),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_unknown_names(refused: Refused, mlp: Path, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    contains(refused(2, "expand", mlp, *flags, "--add", "2"), *words)


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (2, "expand", ("--add", "--to", "--times")),
        (2, "expand --add 2 --to 9", ("--add", "--to", "one of")),
        (2, "expand --add 2 --times 2", ("one of",)),
        (2, "expand --add 0", ("fc1", "6")),
        (2, "expand --add -3", ("fc1", "prune")),
        (2, "expand --add x", ("--add",)),
        (2, "expand --add 1.5", ("--add",)),
        (2, "expand --add 1000000000000", ("fc1", "at most")),
        (2, "expand --add 1000000000000000000000000000000", ("fc1", "at most")),
        (2, "expand --to 6", ("fc1", "6")),
        (2, "expand --to 2", ("fc1", "prune")),
        (2, "expand --times 0.5", ("fc1", "prune")),
        (2, "expand --times 1", ("fc1",)),
        (2, "expand --times nan", ("--times nan",)),
        (2, "expand --times inf", ("--times inf",)),
        (2, "expand --times 1e9", ("fc1", "at most")),
        (2, "expand --add 2 --init best", ("--init best", "match")),
        (2, "expand --add 2 --probes 0", ("--probes",)),
        (2, "expand --add 2 --probes x", ("--probes",)),
        (2, "expand --add 2 --tolerance -1", ("--tolerance",)),
        (2, "expand --add 2 --tolerance nan", ("--tolerance",)),
        (2, "expand --add 2 --dtype int8", ("--dtype int8", "float64")),
        (2, "expand --add 2 --dtype float", ("--dtype float", "float64")),
        (2, "expand --add 2 --device abacus", ("--device abacus", "cpu")),
        (2, "expand --add 2 --device meta", ("--device meta", "cpu")),
        (2, "expand --add 2 --seed x", ("--seed",)),
        (2, "expand --add 2 --allow-drift -1", ("--allow-drift",)),
        (2, "expand --add 2 --allow-drift nan", ("--allow-drift",)),
        (2, "expand --add 2 --no-such-flag", ("--no-such-flag",)),
        (2, "expand --add 2 --activation foo", ("'foo'",)),
        (2, "expand --add", ("--add",)),
        (2, "split", ("--units", "--top", "--above")),
        (2, "split --units 1 --top 2", ("one of",)),
        (2, "split --units 6", ("--units 6", "0 to 5")),
        (2, "split --units -1", ("--units -1",)),
        (2, "split --units 1,,2", ("--units 1,,2", "3,7")),
        (2, "split --units 5-1", ("--units 5-1",)),
        (2, "split --units 0-99999999999", ("--units 0-99999999999",)),
        (2, "split --units a", ("--units a", "3,7")),
        (2, "split --units 1 --noise nan", ("--noise nan",)),
        (2, "split --units 1 --noise -1", ("--noise -1",)),
        (2, "split --units 1 --noise inf", ("--noise inf",)),
        (2, "split --units 1 --ways 1", ("--ways 1",)),
        (2, "split --units 1 --ways 100000", ("--ways 100000",)),
        (2, "split --top 0", ("--top 0",)),
        (2, "split --top -2", ("--top -2",)),
        (2, "split --above nan", ("--above nan",)),
        (2, "split --top 1 --by beauty", ("--by beauty", "weight")),
        (2, "prune", ("--units", "--dead")),
        (2, "prune --units 1 --dead", ("one of",)),
        (2, "prune --dead --duplicates", ("one of",)),
        (2, "prune --units 17", ("--units 17", "0 to 5")),
        (2, "prune --units all", ("--units all",)),
        (3, "prune --units 0-5 --activation relu", ("fc1", "at least one")),
        (2, "prune --lowest 0", ("--lowest 0",)),
        (2, "prune --lowest 6", ("'fc1'", "6")),
        (2, "prune --fraction 2", ("--fraction 2",)),
        (2, "prune --fraction 0", ("--fraction 0",)),
        (2, "prune --fraction -0.5", ("--fraction -0.5",)),
        (2, "prune --fraction nan", ("--fraction nan",)),
        (2, "prune --below nan", ("--below nan",)),
        (2, "prune --lowest 1 --by beauty", ("--by beauty", "weight")),
        (1, "prune --lowest 1 --activation relu", ("--allow-drift", "nothing was written")),
        (1, "prune --below inf --activation relu", ("--allow-drift",)),
        (3, "prune --dead", ("'act1'", "--activation relu")),
        (3, "recycle", ("'act1'", "--activation relu")),
        (2, "recycle --noise nan --activation relu", ("--noise nan",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_and_flags(refused: Refused, mlp: Path, code: int, arguments: str, words: tuple[str, ...]) -> None:
    command, *flags = arguments.split()
    contains(refused(code, command, mlp, "--layer", "fc1", *flags), *words)


@pytest.mark.parametrize(
    "arguments",
    [("foo",), ("inspect",), ("inspect", "a.pt", "b.pt"), ("diff", "a.pt"), ("convert", "a.pt"), ("--nonsense",)],
    ids=" ".join,
)
def test_words_that_make_no_command(refused: Refused, arguments: tuple[str, ...]) -> None:
    contains(refused(2, *arguments, json_too=False), "--help")


def test_units_of_an_output_that_is_fixed(refused: Refused, mlp: Path) -> None:
    for arguments in (
        ("expand", "--layer", "out", "--add", "1"),
        ("split", "--layer", "out", "--units", "1"),
        ("split", "--layer", "out", "--top", "1"),
        ("prune", "--layer", "out", "--units", "1"),
        ("prune", "--layer", "out", "--lowest", "1"),
        ("prune", "--layer", "out", "--dead"),
        ("recycle", "--layer", "out"),
        ("expand", "--width", "input", "--add", "1"),
    ):
        command, *flags = arguments
        line = refused(3, command, mlp, *flags, "--activation", "relu")
        contains(line, "of the model", "may not change", "inspect")


# -- outputs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("nowhere/new.pt", ("nowhere", "does not exist")),
        ("ckpt.pt", ("is the input itself", "--force")),
        ("taken.pt", ("taken.pt", "exists", "--force")),
        ("folder", ("folder", "directory")),
        ("new.safetensors", ("new.safetensors", "torch", "convert")),
        ("y" * 300 + ".pt", ("too long",)),
    ],
)
def test_outputs(refused: Refused, mlp: Path, output: str, words: tuple[str, ...]) -> None:
    (mlp.parent / "taken.pt").write_text("mine")
    (mlp.parent / "folder").mkdir()
    contains(refused(2, "expand", mlp, *EXPAND, "-o", mlp.parent / output), *words)
    if output == "folder":
        contains(refused(2, "expand", mlp, *EXPAND, "-o", mlp.parent / output, "--force"), *words)


def test_outputs_without_a_name(refused: Refused, mlp: Path) -> None:
    for output in ("", ".", "/"):
        for arguments in (("expand", mlp, *EXPAND), ("convert", mlp), ("infer", mlp)):
            contains(refused(2, *arguments, "-o", output), "-o")


def test_infer_does_not_overwrite_the_checkpoint(refused: Refused, mlp: Path) -> None:
    contains(refused(2, "infer", mlp, "-o", mlp), "checkpoint")
    contains(refused(2, "infer", mlp, "-o", mlp, "--force"), "checkpoint")
    contains(refused(2, "infer", mlp, "--activation", "foo"), "--activation foo")


def test_conversions(refused: Refused, mlp: Path) -> None:
    contains(refused(2, "convert", mlp, "-o", mlp.with_name("a.onnx")), ".safetensors")
    contains(refused(2, "convert", mlp, "-o", mlp.with_name("b.pt")), "already", ".safetensors")
    contains(refused(2, "convert", mlp, "-o", mlp.with_name("no") / "b.safetensors"), "does not exist")


def test_a_folder_that_cannot_be_written(refused: Refused, mlp: Path) -> None:
    mlp.parent.chmod(0o500)
    try:
        if os.access(mlp.parent, os.W_OK):
            pytest.skip("this user may write everywhere")
        contains(refused(2, "expand", mlp, *EXPAND), "cannot write", "Permission denied")
    finally:
        mlp.parent.chmod(0o700)


@pytest.mark.parametrize(("ending", "most"), [(".pt", 700), (".safetensors", 0)])
def test_a_full_disk(tmp_path: Path, ending: str, most: int) -> None:
    ckpt = save(tmp_path / f"ckpt{ending}", chain(5, 60, 40, 3))
    before = contents(tmp_path)

    def limit() -> None:
        # Python ignores the signal, so that a write beyond the limit fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    done = subprocess.run(
        program("expand", ckpt, *EXPAND, "--json"),
        preexec_fn=limit, capture_output=True, env=environment(PYTHONDONTWRITEBYTECODE="1"), timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    contains(lines[0], f"ckpt.expanded{ending}", "cannot write", "nothing was written")
    assert contents(tmp_path) == before


# -- specs ----------------------------------------------------------------------------------------------

ONE = "{op: linear, from: act1}"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MLP_SPEC.replace("[batch, 5]", "[batch, 7]"), (":5:", "'fc1'", "5", "7")),
        (MLP_SPEC.replace("fc1:", "fc9:").replace("from: fc1", "from: fc9"), ("'fc9.weight'", "did you mean")),
        (MLP_SPEC.replace("from: fc1}", "from: fc8}"), (":6:", "'fc8'", "did you mean")),
        (MLP_SPEC.replace("  act1:", "  fc1: {op: linear, from: x}\n  act1:"), (":6:", "'fc1'", "twice", "line 5")),
        (MLP_SPEC.replace("from: act1}", "from: act2}"), ("cycle", "fc2 -> act2 -> fc2")),
        (MLP_SPEC.replace(ONE, '{op: linear, from: {"0:4": act1, "2:6": act1}}'), (":7:", "overlap")),
        (MLP_SPEC.replace(ONE, '{op: linear, from: {"0:2": act1, "4:6": act1}}'), (":7:", "2:4")),
        (MLP_SPEC.replace(ONE, '{op: linear, from: {"0:2": act1}}'), (":7:", "'act1'", "6")),
        (MLP_SPEC.replace(ONE, '{op: linear, from: "act1[0:9]"}'), (":7:", "0:9", "6")),
        (MLP_SPEC.replace("op: relu", "op: rellu", 1), (":6:", "'rellu'", "relu")),
        (MLP_SPEC.replace("[out]", "[end]"), ("'end'",)),
        (MLP_SPEC.replace("outputs: [out]\n", ""), ("outputs",)),
        (MLP_SPEC.replace("netgrow: 1", "netgrow: 2"), ("version 2",)),
        (MLP_SPEC + "extra: 1\n", (":11:", "'extra'")),
        ("", ("empty",)),
        ("- a\n", ("mapping",)),
        ("a: [1", ("YAML",)),
        (BOMB, ("aliases",)),
        ("a: &a [*a]\n", ("nested",)),
        ("[" * 5000, ("nested",)),
        ("!!python/object/apply:os.system ['touch ran']\n", ("nothing a spec can hold",)),
        (MLP_SPEC + "key: model\n", ("'model'",)),
        (MLP_SPEC + "prefix: net.\n", ("'net.'",)),
        (
            MLP_SPEC.replace("  out: {op: linear, from: act2}\n", "").replace("[out]", "[act2]"),
            ("out.weight", "ignore"),
        ),
    ],
    ids=range(24),
)
def test_specs(refused: Refused, mlp: Path, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(text)
    contains(refused(2, "expand", mlp, *EXPAND, "--spec", spec, json_too=text != BOMB), *words)
    contains(refused(2, "check", mlp, "--spec", spec, json_too=False), *words)
    assert not Path("ran").exists()


def test_specs_that_are_no_text(refused: Refused, mlp: Path, tmp_path: Path) -> None:
    contains(refused(2, "inspect", mlp, "--spec", tmp_path / "none.yaml"), "none.yaml", "no such spec")
    contains(refused(2, "inspect", mlp, "--spec", tmp_path), "cannot be read")
    contains(refused(2, "inspect", mlp, "--spec", mlp), "cannot be read as text")


def test_nothing_can_be_drafted(refused: Refused, tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(4, 4), "b.weight": torch.randn(4, 4), "c.weight": torch.randn(4, 4)}
    line = refused(2, "expand", save(tmp_path / "a.pt", state), "--layer", "a", "--add", "1")
    contains(line, "a.pt", "two readings", "->", "--spec")


EFFECTS = {
    "softmax": "softmax",
    "log_softmax": "softmax",
    "layer_norm": "layer_norm",
    "normalize": "normalize",
}


@pytest.mark.parametrize("op", EFFECTS)
@pytest.mark.parametrize("change", ["expand --add 2", "split --units 1", "prune --units 1"])
def test_effects(refused: Refused, mlp: Path, tmp_path: Path, op: str, change: str) -> None:
    if (op, change) == ("normalize", "expand --add 2"):
        pytest.skip("zero units do not change a norm over all")
    spec = tmp_path / "spec.yaml"
    spec.write_text(MLP_SPEC.replace("{op: relu, from: fc2}", f"{{op: {op}, from: fc2}}"))
    command, *flags = change.split()
    line = refused(3, command, mlp, "--layer", "fc2", *flags, "--spec", spec)
    contains(line, "'act2'", EFFECTS[op], "--allow-drift" if command == "prune" else "what works")


# -- tensors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "arguments",
    ["expand --add 2", "split --units 1", "split --top 1", "prune --dead", "prune --lowest 1", "recycle", "check"],
)
def test_weights_that_are_not_finite(refused: Refused, tmp_path: Path, value: float, arguments: str) -> None:
    state = chain(5, 6, 4, 3)
    state["fc2.weight"][1, 1] = value
    ckpt = save(tmp_path / "ckpt.pt", state)
    command, *flags = arguments.split()
    layer = () if command == "check" else ("--layer", "fc1")
    line = refused(2, command, ckpt, *layer, *flags, "--activation", "relu")
    contains(line, "fc2.weight", "NaN or infinite", "--no-verify")


def test_not_finite_weights_without_proof(run: Run, tmp_path: Path) -> None:
    state = chain(5, 6, 4, 3)
    state["fc2.weight"][1, 1] = float("nan")
    result = run("expand", save(tmp_path / "ckpt.pt", state), *EXPAND, "--no-verify")
    assert result.path.is_file() and "NOT VERIFIED" in result.err


def test_verify_of_weights_that_are_not_finite(run: Run, refused: Refused, tmp_path: Path) -> None:
    good, state = save(tmp_path / "good.pt", chain(5, 6, 4, 3)), chain(5, 6, 4, 3)
    state["fc1.bias"][0] = float("nan")
    bad = save(tmp_path / "bad.pt", state)
    contains(refused(2, "verify", bad, good), "fc1.bias", "NaN")
    result = run("verify", good, bad, "--json")
    assert result.code == 1 and result.json["equal"] is False


def quantised(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {**state, "fc1.weight": torch.quantize_per_tensor(state["fc1.weight"], 0.1, 0, torch.qint8)}


@pytest.mark.parametrize("kind", ["quantised", "int8", "complex"])
@pytest.mark.parametrize(
    "arguments",
    [
        "expand --layer fc1 --add 2",
        "expand --layer fc2 --add 2",
        "split --layer fc1 --units 1",
        "split --layer fc1 --top 1",
        "prune --layer fc1 --units 1",
        "prune --layer fc1 --lowest 1",
        "prune --layer fc1 --dead",
        "prune --layer fc1 --duplicates",
        "recycle --layer fc1",
        "check",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_real_numbers(refused: Refused, tmp_path: Path, kind: str, arguments: str) -> None:
    state = chain(5, 6, 4, 3)
    if kind == "quantised":
        state = quantised(state)
    else:
        state["fc1.weight"] = state["fc1.weight"].to(torch.int8 if kind == "int8" else torch.complex64)
    ckpt = save(tmp_path / "ckpt.pt", state)
    (tmp_path / "netgrow.yaml").write_text(MLP_SPEC)
    command, *flags = arguments.split()
    contains(refused(3, command, ckpt, *flags), "fc1.weight", "values", "convert the checkpoint")


@pytest.mark.filterwarnings("ignore")
def test_other_layers_of_a_quantised_network(run: Run, tmp_path: Path) -> None:
    ckpt = save(tmp_path / "ckpt.pt", quantised(chain(5, 6, 4, 3)))
    (tmp_path / "netgrow.yaml").write_text(MLP_SPEC)
    assert run("inspect", ckpt).code == 0
    done = run("expand", ckpt, "--layer", "fc2", "--add", "2", "--no-verify")
    assert torch.load(done.path, weights_only=True)["fc1.weight"].is_quantized


def test_sparse_tensors(refused: Refused, tmp_path: Path) -> None:
    state = chain(5, 6, 4, 3)
    state["fc1.weight"] = state["fc1.weight"].to_sparse()
    contains(refused(2, "expand", save(tmp_path / "a.pt", state), *EXPAND), "fc1.weight", "sparse", "dense")


def test_scalars_and_tensors_without_elements(refused: Refused, run: Run, tmp_path: Path) -> None:
    odd = {"step": torch.tensor(3), "scale": torch.tensor(0.5), "none": torch.zeros(0, 4)}
    ckpt = save(tmp_path / "ckpt.pt", {**chain(5, 6, 4, 3), **odd})
    contains(refused(2, "expand", ckpt, *EXPAND), "none", "--spec")
    spec = tmp_path / "netgrow.yaml"
    spec.write_text(MLP_SPEC)
    contains(refused(2, "expand", ckpt, *EXPAND), "step", "scale", "none", "ignore:")
    assert "step" in run("inspect", ckpt).err
    spec.write_text(MLP_SPEC + "ignore: [step, scale, none]\n")
    new = torch.load(run("expand", ckpt, *EXPAND).path, weights_only=True)
    assert all(torch.equal(new[name], value) for name, value in odd.items())


def test_layers_without_units(refused: Refused, run: Run, tmp_path: Path) -> None:
    ckpt = save(tmp_path / "a.pt", chain(5, 0, 4, 3))
    assert run("inspect", ckpt).code == 0
    contains(refused(3, "expand", ckpt, *EXPAND), "fc1", "no units")
    other = save(tmp_path / "b.pt", {**chain(5, 6, 4, 3), "fc1.weight": torch.zeros(6, 0)})
    contains(refused(2, "expand", other, *EXPAND), "b.pt", "0")


def test_a_safetensors_file_without_tensors(refused: Refused, tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    contains(refused(2, "expand", tmp_path / "a.safetensors", *EXPAND), "a.safetensors", "no layer")


def test_a_forgotten_layer(refused: Refused, tmp_path: Path) -> None:
    ckpt = save(tmp_path / "a.pt", {**chain(5, 6, 4, 3), "value.weight": torch.randn(1, 6)})
    (tmp_path / "netgrow.yaml").write_text(MLP_SPEC)
    for arguments in (("expand", ckpt, *EXPAND), ("check", ckpt), ("verify", ckpt, ckpt)):
        contains(refused(2, *arguments), "value.weight", "ignore:")


def test_a_twin_of_the_network_that_stays(run: Run, tmp_path: Path) -> None:
    nested = {"model": chain(5, 6, 4, 3), "q2": {f"module.{n}": t for n, t in chain(5, 6, 4, 3).items()}, "epoch": 3}
    ckpt = save(tmp_path / "a.pt", nested)
    for more in ((), ("--json",)):
        result = run("expand", ckpt, *EXPAND, "--force", *more)
        assert result.code == 0
        warned = [line for line in result.err.splitlines() if line.startswith("warning: ")]
        assert len(warned) == 1
        contains(warned[0], "'q2'", "--also q2", "--key q2", "old shapes")
    new = torch.load(tmp_path / "a.expanded.pt", weights_only=True)
    assert new["q2"]["module.fc1.weight"].shape == (6, 5) and new["model"]["fc1.weight"].shape == (8, 5)
    other = run("expand", ckpt, "--layer", "fc1", "--add", "1", "--key", "q2", "-o", tmp_path / "b.pt").err
    assert "'model' in the checkpoint holds the same names and shapes" in other
    assert "warning" not in run("expand", ckpt, *EXPAND, "--force", "--also", "q2").err


# -- probes ---------------------------------------------------------------------------------------------


def probes(path: Path, what: Any) -> Path:
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif path.suffix == ".npz":
        np.savez(path, **what)
    elif path.suffix == ".pt":
        torch.save(what, path)
    else:
        np.save(path, what)
    return path


@pytest.mark.parametrize(
    ("name", "what", "words"),
    [
        ("a.npy", np.zeros((7, 4), "f4"), ("'x'", "[batch, 5]", "[7, 4]")),
        ("b.npy", np.zeros(5, "f4"), ("'x'", "[batch, 5]", "[5]")),
        ("c.npy", np.zeros((7, 5), "i4"), ("'x'", "float32", "int32")),
        ("d.npy", np.zeros((0, 5), "f4"), ("no rows",)),
        ("e.npy", np.full((3, 5), np.nan), ("'x'", "finite")),
        ("f.npy", np.full((3, 5), np.inf), ("'x'", "finite")),
        ("g.npy", np.array([["a"] * 5]), ("cannot be read",)),
        ("h.npy", np.zeros((7, 5), "c8"), ("'x'", "float32", "complex64")),
        ("i.npy", np.array([[{}] * 5], dtype=object), ("cannot be read",)),
        ("j.npy", b"", ("cannot be read",)),
        ("k.csv", b"", ("no rows",)),
        ("l.csv", b"a,b,c,d,e\n", ("no rows",)),
        ("m.csv", b"1,2,3,4\n", ("[batch, 5]", "[1, 4]")),
        ("n.csv", b"1,2,3,4,oops\n1,2,3,4,5\n", ("cannot be read", "oops")),
        ("o.csv", b"1,2,3,4,5\n1,2\n", ("cannot be read", "columns")),
        ("p.csv", b"1,2,3,4,nan\n", ("finite",)),
        ("q.csv", b"\xff\xfe\n", ("cannot be read",)),
        ("r.npz", {"a": np.zeros((3, 5)), "b": np.zeros((3, 5))}, ("'x'", "a, b")),
        ("s.npz", b"PK", ("cannot be read",)),
        ("t.pt", b"", ("empty",)),
        ("u.pt", [1], ("tensor",)),
        ("v.pt", torch.optim.SGD, ("contains code",)),
        ("w.safetensors", b"", ("cannot be read",)),
        ("none.npy", None, ("no such file",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_probe_data(refused: Refused, mlp: Path, name: str, what: Any, words: tuple[str, ...]) -> None:
    (mlp.parent / "netgrow.yaml").write_text(MLP_SPEC)
    file = mlp.parent / name if what is None else probes(mlp.parent / name, what)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contains(refused(2, "expand", mlp, *EXPAND, "--probe-data", file), name, *words)


# -- two checkpoints ------------------------------------------------------------------------------------


def test_verify_of_networks_that_cannot_be_compared(refused: Refused, tmp_path: Path) -> None:
    a = save(tmp_path / "a.pt", chain(5, 6, 4, 3))
    b = save(tmp_path / "b.pt", chain(7, 6, 4, 3))
    contains(refused(2, "verify", a, b), "input", "5", "7")
    c = save(tmp_path / "c.pt", chain(5, 6, 4, 2))
    contains(refused(2, "verify", a, c), "output", "3", "2")
    (tmp_path / "d.pt.netgrow.yaml").write_text(CORE_SPEC)
    d = save(tmp_path / "d.pt", {"zz.weight": torch.zeros(3, 3)})
    contains(refused(2, "verify", a, d), "d.pt")
    contains(refused(2, "verify", a, a, "--model", "nothing"), "package.module:factory")
    contains(refused(2, "verify", a, a, "--model", "no_such_module:Net"), "no_such_module")
    contains(refused(2, "verify", a, a, "--model", "json:Net"), "'Net'")


@pytest.mark.parametrize("metadata", [{"netgrow.spec": "layers: ["}, {"netgrow.spec": "- 1"}])
def test_a_damaged_embedded_spec(refused: Refused, tmp_path: Path, metadata: dict[str, str]) -> None:
    save_file(chain(5, 6, 4, 3), tmp_path / "a.safetensors", metadata)
    contains(refused(2, "expand", tmp_path / "a.safetensors", *EXPAND), "a.safetensors", "netgrow.spec")


def test_a_damaged_record(run: Run, tmp_path: Path) -> None:
    """The record is a help to `verify`, which compares without it as well."""
    ckpt = save(tmp_path / "a.pt", chain(5, 6, 4, 3))
    made = run("expand", ckpt, *EXPAND).path
    for text in ("", "{", "[]", '{"netgrow": 99}', '{"netgrow": 1, "changes": [{}]}'):
        made.with_name(f"{made.name}.netgrow.json").write_text(text)
        result = run("verify", ckpt, made)
        assert result.code == 0, result.err
