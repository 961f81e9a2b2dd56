"""--proof: which comparison is made, what a report says of it, and that what is wrong is not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from netgrow_cli.jobs import job, proving, written

from .driver import Run, contents


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every network were too large to be run whole."""
    monkeypatch.setattr(proving, "WHOLE_BYTES", 0)


def test_small_networks_are_run_whole(run: Run, mlp: Path) -> None:
    found = run("expand", mlp, "--layer", "fc1", "--add", 2, "--json").json["equivalence"]
    assert found["mode"] == "whole" and found["pieces"] is None and found["probes"] == 256
    assert found["why"] == "its numbers take 0.0 GB in float64"


def test_large_networks_are_compared_in_pieces(run: Run, mlp: Path, small_is_large: None) -> None:
    found = run("split", mlp, "--layer", "fc1", "--units", "1,2", "--json").json["equivalence"]
    assert found["mode"] == "pieces" and found["pieces"] == 1 and found["equal"] and found["dtype"] == "float64"
    result = run("expand", mlp, "--layer", "fc2", "--add", 2)
    assert "for each of 1 piece" in result.err and "compared in pieces: its numbers take" in result.err


@pytest.mark.parametrize("command", (("expand", "--add", 2), ("split", "--units", "0")))
def test_the_mode_that_is_asked_for(run: Run, mlp: Path, command: tuple[Any, ...]) -> None:
    for mode in ("pieces", "whole"):
        arguments = (
            command[0],
            mlp,
            "--layer",
            "fc1",
            *command[1:],
            "--proof",
            mode,
            "--probes",
            7,
            "--force",
            "--json",
        )
        found = run(*arguments).json["equivalence"]
        assert found["mode"] == mode and found["why"] == f"--proof {mode}" and found["probes"] == 7


def test_a_mode_that_there_is_not(run: Run, mlp: Path) -> None:
    result = run("expand", mlp, "--layer", "fc1", "--add", 2, "--proof", "parts")
    assert result.code == 2 and "auto, pieces, whole" in result.complaint


def test_units_that_are_dead_on_data_need_the_whole_network(run: Run, mlp: Path, small_is_large: None) -> None:
    drift = ("prune", mlp, "--layer", "fc1", "--units", "1", "--json", "--force", "--allow-drift", 100)
    drift = (*drift, "--activation", "relu")
    found = run(*drift).json["equivalence"]
    assert found["mode"] == "whole" and "dropped" in found["why"]
    before = contents(mlp.parent)
    result = run("prune", mlp, "--layer", "fc1", "--units", "1", "--activation", "relu", "--proof", "pieces", "--force")
    assert result.code == 2 and "--proof whole" in result.complaint and contents(mlp.parent) == before
    found = run(*drift, "--proof", "pieces").json["equivalence"]
    assert found["mode"] == "pieces" and found["max_rel"] > 0


def test_the_users_data_goes_through_the_whole_network(
    run: Run, mlp: Path, tmp_path: Path, small_is_large: None
) -> None:
    data = tmp_path / "data.pt"
    torch.save(torch.randn(9, 5), data)
    arguments = ("expand", mlp, "--layer", "fc1", "--add", 2, "--probe-data", data)
    found = run(*arguments, "--json").json["equivalence"]
    assert found["mode"] == "whole" and "--probe-data" in found["why"]
    assert run(*arguments, "--proof", "pieces", "--force").code == 2


def test_verify_in_pieces(run: Run, mlp: Path, small_is_large: None) -> None:
    out = run("expand", mlp, "--layer", "fc1", "--add", 2).path
    found = run("verify", mlp, out, "--json").json
    assert found["mode"] == "pieces" and found["pieces"] == 1 and found["equal"]
    assert "compared in 1 piece" in run("verify", mlp, out).out
    assert run("verify", mlp, out, "--proof", "whole", "--json").json["mode"] == "whole"
    # Without the record nobody knows what changed; with numbers changed behind it, only the whole can tell.
    out.with_name(f"{out.name}.netgrow.json").rename(out.with_name("record"))
    found = run("verify", mlp, out, "--json").json
    assert found["mode"] == "whole" and found["equal"] and found["why"] == "what was changed is not known"
    result = run("verify", mlp, out, "--proof", "pieces")
    assert result.code == 3 and "--proof whole" in result.complaint
    out.with_name("record").rename(out.with_name(f"{out.name}.netgrow.json"))
    state = torch.load(out)
    state["fc2.weight"][0, -1] = 1.0
    torch.save(state, out)
    result = run("verify", mlp, out, "--json")
    assert result.code == 1 and result.json["folded_back"]["differing"] == ["fc2.weight"]


def test_a_piece_that_differs_is_named_and_nothing_is_written(
    run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch, small_is_large: None
) -> None:
    """Where folding back saw nothing, pieces still do."""
    found = written.fold_back

    def blind(*arguments: Any, **more: Any) -> Any:
        result = found(*arguments, **more)
        return type(result)(result.exact, (), result.left)

    def spoiled(*arguments: Any) -> None:
        write(*arguments)
        path = arguments[1][0]
        state = torch.load(path)
        state["fc2.weight"][0, -1] = 1.0
        torch.save(state, path)

    write = job._write
    monkeypatch.setattr(written, "fold_back", blind)
    monkeypatch.setattr(job, "_write", spoiled)
    before = contents(mlp.parent)
    result = run("expand", mlp, "--layer", "fc1", "--add", 2)
    assert result.code == 1 and "the piece around fc1, fc2" in result.complaint
    assert contents(mlp.parent) == before


def test_a_large_network_is_certified_on_fewer_probes(run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def probes(*more: Any) -> int:
        found: int = run("check", mlp, "--json", *more).json["equivalence"]["probes"]
        return found

    assert (probes(), probes("--probes", 7)) == (256, 7)
    monkeypatch.setattr(proving, "WHOLE_BYTES", 0)
    assert (probes(), probes("--probes", 300)) == (16, 300)
