"""Watch a training loop, and keep for every unit how large its gradient and its activation are.

recorder = netgrow_cli.UnitRecorder(model)
for batch in loader:
    loss(model, batch).backward()
    recorder.step()                  # before the optimizer's step
    optimizer.step()
    optimizer.zero_grad()
recorder.save("units.safetensors")   # netgrow split ckpt.pt --by gradient --scores units.safetensors --above C
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.hooks import RemovableHandle

from netgrow_cli.checkpoint.names import strip_wrappers
from netgrow_cli.errors import UsageError
from netgrow_cli.recording import ACTIVE, FORMAT, GRADIENT, SIZE, TAYLOR, along, read_by


class UnitRecorder:
    """Gathers, over training steps, what `--by gradient, taylor, activation, active, dormant` need of each unit.

    For each parameter, along its first two axes: the mean absolute gradient, and the mean absolute sum of weight times
    gradient (what the loss would change, to first order, if the row were zero). For each layer with a weight: the mean
    absolute value of each unit that it reads, and the share of values that are not zero.

    every: how many steps lie between two that are looked at; the first is.
    """

    def __init__(self, model: nn.Module, *, every: int = 20) -> None:
        if every < 1:
            raise UsageError(f"UnitRecorder(every={every}): at least 1 is needed")
        self._every = every
        self._step = 0
        self._looked = 0
        self._means: dict[tuple[Any, ...], _Mean] = {}
        self._found: dict[str, list[torch.Tensor]] = {}
        self._parameters = {strip_wrappers(name): value for name, value in model.named_parameters()}
        names = {id(value): name for name, value in self._parameters.items()}
        self._readings = [
            (module, _Reading(self, names[id(weight)], axis))
            for module in model.modules()
            for weight, axis in _read_with(module)
            if id(weight) in names
        ]
        self._hooks: list[RemovableHandle] = []
        self._closed = False
        self._attach()

    @property
    def looking(self) -> bool:
        """Whether the step under way is looked at."""
        return self._step % self._every == 0

    def step(self) -> None:
        """Look at the gradients. Once for each step of the optimizer: after `backward`, and before gradients are gone.

        With a gradient scaler, after `scaler.unscale_(optimizer)`.
        """
        if self.looking:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    if parameter.grad is not None and not parameter.grad.is_sparse:
                        self._gradient(name, parameter.detach(), parameter.grad.detach())
                self._count()
            self._looked += 1
        self._step += 1
        self._attach()

    def save(self, path: str | Path) -> None:
        """Write what was gathered, a few kilobytes for each layer. Raises UsageError where there is nothing yet."""
        if not self._looked:
            raise UsageError("UnitRecorder.save: no step was recorded; call step() after each backward()")
        path = Path(path)
        if path.suffix != ".safetensors":
            raise UsageError(f"UnitRecorder.save: {path} should end in .safetensors")
        tensors = _vectors(self._means.values())
        metadata = {"format": FORMAT, "version": "1", "steps": str(self._looked), "of_steps": str(self._step)}
        made = path.with_name(f".{path.name}.part")
        save_file(tensors, made, metadata)
        made.replace(path)

    def reset(self) -> None:
        """Forget what was gathered: for a new epoch."""
        self._means.clear()
        self._found.clear()
        self._step = self._looked = 0
        self._attach()

    def close(self) -> None:
        """Take the hooks off the model; what was gathered can still be saved."""
        self._closed = True
        self._attach()

    def _attach(self) -> None:
        """Hooks are on the model only while it is looked at: modules that have any are slower to call."""
        wanted = self.looking and not self._closed
        if wanted and not self._hooks:
            self._hooks = [module.register_forward_pre_hook(reading) for module, reading in self._readings]
        elif not wanted:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def __enter__(self) -> UnitRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, name: str, values: torch.Tensor) -> None:
        """One vector of the step under way."""
        self._found.setdefault(name, []).append(values)

    def _gradient(self, name: str, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        size = gradient.abs()
        product = parameter * gradient if parameter.dim() > 1 else None
        for axis in range(min(parameter.dim(), 2)):
            self.add(along(GRADIENT, name, axis), _mean(size, axis))
            if product is not None:
                self.add(along(TAYLOR, name, axis), _sum(product, axis).abs())

    def _count(self) -> None:
        """Add the step's vectors to the means, all of a device at once: many small sums would cost more."""
        by_device: dict[torch.device, dict[str, torch.Tensor]] = {}
        for name, found in self._found.items():
            vector = found[0] if len(found) == 1 else torch.stack(found).mean(0)
            by_device.setdefault(vector.device, {})[name] = vector.float()
        for device, vectors in by_device.items():
            layout = tuple((name, len(vector)) for name, vector in vectors.items())
            flat = torch.cat(list(vectors.values()))
            self._means.setdefault((device, layout), _Mean(layout, flat)).add(flat)
        self._found.clear()


class _Mean:
    """A running mean of vectors side by side; a step with infinities or NaN (a scaler's overflow) does not count."""

    def __init__(self, layout: tuple[tuple[str, int], ...], like: torch.Tensor) -> None:
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        self.layout = layout
        self.sum = torch.zeros(like.shape, dtype=wide, device=like.device)
        self.count = torch.zeros((), dtype=wide, device=like.device)

    def add(self, values: torch.Tensor) -> None:
        finite = values.isfinite().all()
        self.sum += torch.where(finite, values, 0.0)
        self.count += finite


def _vectors(means: Iterable[_Mean]) -> dict[str, torch.Tensor]:
    """By name, the mean over all steps. (Layers that do not run at every step make several sets of vectors.)"""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, float] = {}
    for mean in means:
        parts = torch.split(mean.sum.cpu(), [length for _, length in mean.layout])
        for (name, _), part in zip(mean.layout, parts, strict=True):
            sums[name] = sums[name] + part if name in sums else part
            counts[name] = counts.get(name, 0.0) + float(mean.count)
    return {name: (total / max(counts[name], 1.0)).float() for name, total in sums.items()}


def _sum(values: torch.Tensor, axis: int) -> torch.Tensor:
    """The sum over all axes but one."""
    others = [other for other in range(values.dim()) if other != axis % values.dim()]
    return values.sum(others) if others else values


def _mean(values: torch.Tensor, axis: int) -> torch.Tensor:
    """The mean over all axes but one."""
    return _sum(values, axis) * (values.shape[axis] / values.numel())


def _not_zero(sizes: torch.Tensor) -> torch.Tensor:
    """1 for each number that is not 0. (Comparing, and adding up what is true, takes five times as long.)"""
    return (sizes * torch.finfo(sizes.dtype).max).clamp_(max=1.0)


class _Reading:
    """A hook: what a layer reads, counted for its weight."""

    def __init__(self, recorder: UnitRecorder, weight: str, axis: int) -> None:
        self._recorder = recorder
        self._size, self._active = read_by(SIZE, weight), read_by(ACTIVE, weight)
        self._axis = axis

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        # (What runs without gradients is no training: an evaluation, an agent's acting.)
        if not (torch.is_grad_enabled() and arguments):
            return
        if not isinstance(arguments[0], torch.Tensor):
            return
        value = arguments[0].detach()
        if value.is_floating_point() and value.dim() > 1 and value.numel():
            with torch.no_grad():
                size = value.abs()
                self._recorder.add(self._size, _mean(size, self._axis))
                self._recorder.add(self._active, _mean(_not_zero(size), self._axis))


def _read_with(module: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """The weight with which a layer reads its first argument, and that argument's axis of units, from the end."""
    if isinstance(module, nn.RNNBase):
        yield cast(nn.Parameter, module.weight_ih_l0), -1
        return
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() < 2 or isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return
    convolves = isinstance(module, nn.modules.conv._ConvNd)
    yield weight, (1 - weight.dim() if convolves else -1)
