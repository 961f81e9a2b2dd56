"""A model from `package.module:factory`, or from the `config.json` of a Hugging Face folder; and its trace."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from netgrow_cli.checkpoint.dtypes import name_of
from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import SpecError, UsageError, first_line
from netgrow_cli.frozen import frozen
from netgrow_cli.modelcode import load_model
from netgrow_cli.report.console import few
from netgrow_cli.topology.solve import Topology, solve
from netgrow_cli.topology.spec import parse_spec
from netgrow_cli.topology.trace.attributes import Attributes
from netgrow_cli.topology.trace.convert import Converter
from netgrow_cli.topology.trace.fuse import fuse
from netgrow_cli.topology.trace.handlers import HANDLERS
from netgrow_cli.topology.trace.inputs import Given
from netgrow_cli.topology.trace.layer import Layer
from netgrow_cli.topology.trace.reading import drop_dropout, mutates, size_from_values, source_line
from netgrow_cli.topology.trace.write import spec_text

_PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)

_MOST_REAL = 1 << 28
"""Parameters up to which a model from a configuration gets random weights."""

TOKENS = (2, 9)
"""Batch and length of the token ids that a language model is traced with where nothing is said."""


@frozen
class Traced:
    """A trace: the spec's text, and the operations without a rule, with how often they occur.

    lost: by operation without a rule, the widths that it freezes. warnings: what holds for the run alone that was
    recorded, where torch cannot export the model. unused: tensors that no layer has.
    """

    text: str
    unknown: dict[str, int]
    lost: dict[str, tuple[str, ...]]
    unused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def trace_source(source: str, given: Sequence[Given]) -> Traced:
    """Trace what SOURCE names. Raises UsageError."""
    folder = Path(source)
    if folder.is_dir() or folder.name == "config.json":
        model, defaults, options = _hugging_face(folder)
        return trace_model(model, list(given) or defaults, origin=str(source), options=options)
    return trace_model(load_model(source), given, origin=source)


def trace_model(
    model: Any, given: Sequence[Given], *, origin: str = "a model", options: dict[str, Any] | None = None
) -> Traced:
    """Trace a module on inputs of these shapes. Raises UsageError where torch cannot export it."""
    if not given:
        raise UsageError("say what the model reads: --input 'float32[2,3,96,96]', one for each argument")
    batch = given[0].shape[0] if given[0].shape else 1
    unlike = _unlike(model, given)
    refusals: list[str] = []
    with _evaluating(model):
        for kind, program_of in (("torch.export cannot trace it", _export), ("nor does it run", _record)):
            why = ""
            for size in (unlike, batch):  # the code may take the stated batch only
                try:
                    program = program_of(model, _with_batch(given, batch, size), options or {})
                except Exception as error:
                    why = f"{kind}{_place(error)}: {first_line(error)}"
                    continue
                traced = _converted(model, program, given, size if size == unlike else None, origin)
                if traced is not None:
                    return _noted(traced, refusals, program)
            refusals.append(why)
    raise UsageError(f"{origin}: {'; '.join(refusals)}")


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation, and afterwards as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _experts_as_products(model: Any) -> Iterator[None]:
    """transformers can run the same mixture of experts in several ways; this is the one that is all operations."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    found = [config for config in configs.values() if hasattr(config, "_experts_implementation")]
    before = [config._experts_implementation for config in found]
    try:
        for config in found:
            config._experts_implementation = "batched_mm"
        yield
    finally:
        for config, stated in zip(found, before, strict=True):
            config._experts_implementation = stated


@contextlib.contextmanager
def _without_gradients() -> Iterator[None]:
    """No gradients all the way: each switch inside a model would become a graph of its own, which takes time."""
    import torch

    kind: Any = torch.no_grad
    enter, leave = kind.__enter__, kind.__exit__
    with torch.no_grad():
        kind.__enter__, kind.__exit__ = (lambda _: None), (lambda _, *__: None)
        try:
            yield
        finally:
            kind.__enter__, kind.__exit__ = enter, leave


def _export(model: Any, given: Sequence[Given], options: Mapping[str, Any]) -> Any:
    """The exported program, functional where it matters. Raises whatever torch raises, and for sizes not known."""
    import torch

    device = str(next(iter(model.parameters()), torch.zeros(0)).device)
    examples = [(item, item.tensor(device)) for item in given]
    positional = tuple(tensor for item, tensor in examples if item.name is None)
    keywords = {item.name: tensor for item, tensor in examples if item.name is not None}
    # torch logs and prints what it also raises; one line is enough for people.
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    with contextlib.redirect_stderr(io.StringIO()), _experts_as_products(model), _without_gradients():
        program = torch.export.export(model, positional, {**keywords, **options}, strict=False)
    if mutates(program.graph):
        drop_dropout(program.graph)
        program = program.run_decompositions({})
    open_size = size_from_values(program.graph)
    if open_size is not None:
        raise UsageError(f"a size depends on values at {source_line(open_size)}")
    return program


def _record(model: Any, given: Sequence[Given], options: Mapping[str, Any]) -> Any:
    """One run, recorded. Raises whatever the model raises."""
    from netgrow_cli.topology.trace.record import record

    with contextlib.redirect_stderr(io.StringIO()):
        return record(model, given, options)


def _noted(traced: Traced, refusals: Sequence[str], program: Any) -> Traced:
    """The trace with what is to be said of it, as warnings and as comments: unused tensors, the limits of a record."""
    warnings: list[str] = []
    if refusals:
        warnings = [f"{refusals[0]}; one run is recorded instead"]
        warnings += [
            f"{place}: the model looks at values here; the spec holds for inputs that go the same way"
            for place in program.looks
        ]
    numbers, tensors = _unused(traced, program.state_dict)
    ignored = ""
    if numbers:
        ignored = f"ignore: {json.dumps(numbers)}\n"
    if tensors:
        warnings.append(f"not used in this run, so that no layer has them: {few(tensors)}")
        ignored = f"# ignore: {json.dumps([*numbers, *tensors])}  # where they read nothing that changes\n" + ignored
    first, _, rest = traced.text.partition("\n")
    text = "\n".join([first, *(f"# {warning}" for warning in warnings), rest]) + ignored
    return dataclasses.replace(traced, text=text, warnings=tuple(warnings))


def _unused(traced: Traced, state: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Numbers and tensors that no layer has, under any of their names."""
    used = {tensor.untyped_storage()._cdata for name, tensor in state.items() if name not in traced.unused}
    unused = [name for name in traced.unused if state[name].untyped_storage()._cdata not in used]
    numbers = [name for name in unused if state[name].dim() == 0]
    return numbers, [name for name in unused if name not in numbers]


def _converted(model: Any, program: Any, given: Sequence[Given], batch: int | None, origin: str) -> Traced | None:
    """The spec of a program; None where its batch was one that stands for any, and it does not hold at any.

    batch: the batch that stands for any, None where the traced one is meant.
    """
    names = _argument_names(model, given)
    converter = Converter(program, names, HANDLERS, Attributes(dict(model.named_modules())), batch)
    outputs = converter.convert()
    if batch is not None and converter.fixed_batch:
        return None
    layers = _used(fuse(converter.layers, outputs), outputs)
    text = spec_text(
        list(zip(names, given, strict=True)),
        layers,
        outputs,
        tensors=set(program.state_dict),
        fixed_batch=batch is None,
        origin=origin,
    )
    topology = _solved(text, program, batch, converter.output_shapes.values())
    if topology is None:
        return None
    return Traced(
        text, converter.unknown, {call: _lost(topology, call) for call in converter.unknown}, topology.unclaimed
    )


def _unlike(model: Any, given: Sequence[Given]) -> int:
    """A batch that is like no other size of the model, so that numbers that follow it can be told from others."""
    sizes = {size for tensor in model.state_dict().values() for size in tensor.shape}
    sizes |= {size for item in given for size in item.shape[1:]}
    return next(prime for prime in _PRIMES if not any(size % prime == 0 for size in sizes if size > 0))


def _with_batch(given: Sequence[Given], batch: int, size: int) -> list[Given]:
    """The inputs with another batch; those whose first size is not the batch stay."""
    return [
        dataclasses.replace(item, shape=(size, *item.shape[1:])) if item.shape[:1] == (batch,) else item
        for item in given
    ]


def _place(error: Exception) -> str:
    """Where in the model's own code an error arose: ` (net.py:12)`."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(__file__).parent.as_posix()
    files = [(frame, Path(frame.filename).as_posix()) for frame in frames[1:]]
    own = [frame for frame, file in files if "/torch/" not in file and not file.startswith(ours)]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


def _solved(text: str, program: Any, batch: int | None, traced: Iterable[tuple[int, ...]]) -> Topology | None:
    """The trace's topology; None where it does not hold for another batch than one that stands for any.

    traced: the shapes of the outputs in the trace.
    """
    infos = {name: TensorInfo(name, tuple(t.shape), name_of(t.dtype) or "U8") for name, t in program.state_dict.items()}
    graph = parse_spec(text, "the trace").graph(infos)
    if batch is None:
        return solve(graph, infos)
    try:
        topology = solve(graph, infos, sizes={"batch": batch + 1})
    except SpecError:
        return None
    expected = [tuple(batch + 1 if n == 0 else size for n, size in enumerate(shape)) for shape in traced]
    return topology if [topology.value(ref).shape for ref in graph.outputs] == expected else None


def _lost(topology: Topology, call: str) -> tuple[str, ...]:
    """The widths that an operation without a rule freezes."""
    infos = topology.widths.values()
    return tuple(info.name for info in infos if info.frozen is not None and info.frozen.startswith(f"{call} "))


def _without_weights(model: Any) -> None:
    """Memory that nothing is ever written to, which costs none, for all but the numbers that the model computes."""
    model.to_empty(device="cpu")
    for module in model.modules():
        if any(True for _ in module.named_buffers(recurse=False)):
            model._init_weights(module)


def _used(layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
    """What the outputs depend on, and layers that run for nothing: their tensors have to fit what they read."""
    wanted = {ref.partition("[")[0] for ref in outputs}
    kept = []
    for layer in reversed(layers):
        if layer.name in wanted or (layer.params and layer.op != "parameter"):
            kept.append(layer)
            wanted.update(ref.partition("[")[0] for ref in layer.inputs)
    return kept[::-1]


def _argument_names(model: Any, given: Sequence[Given]) -> list[str]:
    """The inputs' names in the spec: the arguments of `forward`."""
    parameters = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names, free = [], iter(parameters)
    for position, item in enumerate(given):
        names.append(item.name or next(free, f"input{position}"))
    return names


def _hugging_face(folder: Path) -> tuple[Any, list[Given], dict[str, Any]]:
    """A model from its configuration, without weights."""
    path = folder if folder.name == "config.json" else folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder}: it has no config.json") from None
    except ValueError as error:
        raise UsageError(f"{path}: no valid JSON: {error}") from None
    try:
        import torch
        import transformers
    except ImportError:
        raise UsageError("tracing a Hugging Face folder needs transformers: pip install 'netgrow[hf]'") from None
    name = next(iter(config.get("architectures") or []), None)
    if name is None or not hasattr(transformers, name):
        raise UsageError(f"{path}: `architectures` names {name!r}, which this transformers does not have")
    settings = transformers.AutoConfig.from_pretrained(str(path.parent))
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind._from_config(settings)
    if sum(tensor.numel() for tensor in model.parameters()) <= _MOST_REAL:
        model = kind._from_config(settings)
    else:
        _without_weights(model)
    vocabulary = getattr(settings.get_text_config(), "vocab_size", None)
    defaults = [Given("input_ids", "int64", TOKENS, vocabulary)] if vocabulary else []
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return model, defaults, options
