"""Recipes: several changes, one after another, on one checkpoint or many.

    netgrow: 1
    changes:
      - prune: {layer: fc1, dead: true}
      - expand: {layer: [fc1, fc2], add: 64}
      - split: {width: "core[0:12]", units: [3, 7]}

The settings are those of the commands. Each step is proven before the next one starts; then the last result is
compared with the first checkpoint.
"""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from netgrow_cli.checkpoint import checkpoint_path, staged_outputs
from netgrow_cli.checkpoint.staged_folder import remove
from netgrow_cli.errors import SpecError, UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.jobs.choosing import Choice
from netgrow_cli.jobs.configuration import output_path
from netgrow_cli.jobs.growing import expanding, splitting
from netgrow_cli.jobs.job import Options, Report, Selector, change, opened
from netgrow_cli.jobs.outputs import default_output, outputs_of
from netgrow_cli.jobs.recycling import recycling
from netgrow_cli.jobs.shrinking import pruning
from netgrow_cli.topology.located import Located, load
from netgrow_cli.topology.shipped.settings import config_path

# Words of the selectors that a recipe says otherwise: `layer`, `width`, `units: all`.
_OWN = ("layers", "widths", "every", "choice")
_COMMANDS: dict[str, Callable[..., Selector]] = {
    "expand": expanding,
    "split": splitting,
    "prune": pruning,
    "recycle": recycling,
}


@frozen
class Step:
    """One change of a recipe."""

    command: str
    select: Selector


def read_recipe(path: Path) -> tuple[Step, ...]:
    """The steps of a recipe file. Raises SpecError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as text ({error})") from None
    root = load(text, str(path))
    listed = root.value.get("changes") if isinstance(root.value, dict) else None
    if listed is None or not isinstance(listed.value, list) or not listed.value:
        raise SpecError(f"{root.mark}: a recipe has `netgrow: 1` and `changes:`, a list such as `- expand: {{...}}`")
    version = root.value.get("netgrow")
    if version is None or version.value != 1:
        raise SpecError(f"{root.mark}: a recipe starts with `netgrow: 1`")
    return tuple(_step(item) for item in listed.value)


def _step(item: Located) -> Step:
    if not isinstance(item.value, dict) or len(item.value) != 1:
        raise SpecError(f"{item.mark}: a change is one command with its settings, as in `- expand: {{...}}`")
    (command, body), *_ = item.value.items()
    if command not in _COMMANDS:
        raise SpecError(f"{item.mark}: {command!r} is no change; there are {', '.join(_COMMANDS)}")
    if not isinstance(body.value, dict):
        raise SpecError(f"{body.mark}: the settings of {command} must be a mapping")
    make = _COMMANDS[command]
    parameters = inspect.signature(make).parameters
    criteria = [field.name for field in dataclasses.fields(Choice)] if "choice" in parameters else []
    known = ["layer", "width", *(name for name in parameters if name not in _OWN), *criteria]
    for key, mark in body.keys.items():
        if key not in known:
            raise SpecError(f"{mark}: {command} has no setting {key!r}; it has {', '.join(known)}")
    settings = {key: value for key, value in body.plain().items() if key not in ("layer", "width")}
    if command in ("split", "recycle") and settings.get("units") == "all":
        settings = {**settings, "units": None, "every": True}
    stated = {key: settings.pop(key) for key in criteria if key in settings}
    try:
        if stated:
            settings["choice"] = Choice(**stated)
        return Step(command, make(_names(body.value.get("layer")), _names(body.value.get("width")), **settings))
    except (TypeError, UsageError) as error:
        raise SpecError(f"{body.mark}: {command}: {error}") from None


def _names(given: Located | None) -> list[str]:
    if given is None:
        return []
    plain = given.plain()
    return [str(name) for name in plain] if isinstance(plain, list) else [str(plain)]


def apply_recipe(path: Path, steps: tuple[Step, ...], options: Options) -> tuple[Path, list[Report]]:
    """Carry out all steps; nothing appears under the output's name before the last one is proven."""
    path = checkpoint_path(path)
    output = options.output or default_output(path, "apply")
    with opened(path, options) as job:
        outputs = outputs_of(job.checkpoint, path, output, force=options.force, drop_optimizer=options.drop_optimizer)
    if not options.dry_run:
        outputs.check()
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".netgrow-") as folder:
        reports: list[Report] = []
        current = path
        stated = None if path.is_dir() else config_path(path)
        config = Path(folder) / "config.json"
        if stated is not None:
            shutil.copyfile(stated, config)
        for number, step in enumerate(steps):
            place = Path(folder) / f"step{number}{'' if path.is_dir() else path.suffix}"
            # From the second step on the spec is the one that goes with the step before.
            spec = options.spec if number == 0 else None
            one = dataclasses.replace(options, output=place, spec=spec, dry_run=False)
            report = change(current, step.command, step.select, one)
            reports.append(_with_configuration(report, config, output_path(path, output)))
            if number:
                remove(current)
            current = place
        if not options.dry_run:
            if not path.is_dir():
                _publish_configuration(reports, config, options.force)
            outputs.adopt(current)
    return output, reports


def _with_configuration(report: Report, config: Path, target: Path) -> Report:
    """A step's report. The next step finds its configuration beside the step's file; a folder has it inside."""
    if report.config is None:
        return report
    if report.config.changes and report.config.output.parent != report.output:
        report.config.output.replace(config)
    return dataclasses.replace(report, config=dataclasses.replace(report.config, output=target))


def _publish_configuration(reports: Sequence[Report], config: Path, force: bool) -> None:
    """What config.json became in all steps, under the name that the last report gives. Raises UsageError."""
    changed = [report.config for report in reports if report.config is not None and report.config.changes]
    if changed:
        with staged_outputs([changed[-1].output], force=force) as staged:
            shutil.copyfile(config, staged.paths[0])
            staged.commit()
