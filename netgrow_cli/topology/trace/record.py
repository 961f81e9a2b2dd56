"""The operations of a real run, in the form that `torch.export` gives: for code that export refuses.

The model runs once on random inputs, and every operation of torch is written down before autograd, so that linear,
layer_norm and attention stay what they are. Numbers that the code looks at (`if x.sum() > 0`) decide the run as
they do any other: the record holds for inputs that go the same way, and says where the code looked.

What changes in place is written down as a new value. Who looks at the same memory under another name reads that
value from then on: a view is taken again, and a change of a view is put back into what it is a view of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from netgrow_cli.errors import UsageError
from netgrow_cli.frozen import frozen
from netgrow_cli.topology.trace.inputs import Given
from netgrow_cli.topology.trace.reading import operation
from netgrow_cli.topology.trace.views import NoInverse, put_back, taken_again

_READS = ("tolist", "numpy", "__array__", "__dlpack__", "storage", "untyped_storage", "data_ptr")
"""Methods that give a tensor's numbers away without an operation."""

_LOOKS = ("is_nonzero", "item", "_local_scalar_dense", "equal", "allclose", "_is_all_true", "_is_any_true")
"""Operations whose result is a number or a truth value of Python."""

_NO_VALUE = ("requires_grad", "detach", "retain_grad")
"""Operations in place that leave the numbers alone."""

_VIEWS = sys.modules[put_back.__module__].__file__


@frozen
class Signature:
    """What the placeholders and the outputs of a record are, by the names that `torch.export` has for it."""

    inputs_to_parameters: dict[str, str]
    inputs_to_buffers: dict[str, str]
    inputs_to_lifted_tensor_constants: dict[str, str]
    output_specs: list[OutputSpec]


@frozen
class OutputSpec:
    """An output of the model."""

    kind: str = "USER_OUTPUT"


@frozen
class Record:
    """A run, to be read as an exported program. looks: where the code looked at values, as `net.py:12`."""

    graph: torch.fx.Graph
    graph_signature: Signature
    state_dict: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]
    looks: tuple[str, ...]


@dataclasses.dataclass
class Memory:
    """A tensor of the run: the node that computes it, and how it is a view of another.

    view: the node that took the view, None for all of it. changes: how many changes in place the root has seen;
    elsewhere at how many of them the node was computed.
    """

    tensor: torch.Tensor
    node: torch.fx.Node
    parent: Memory | None = None
    view: torch.fx.Node | None = None
    changes: int = 0

    @property
    def root(self) -> Memory:
        """What owns the memory."""
        return self if self.parent is None else self.parent.root


def record(model: torch.nn.Module, given: Sequence[Given], options: Mapping[str, Any]) -> Record:
    """Run the model on random inputs and write down its operations. The model is left as it was."""
    fresh = _numbers(model)
    state = {**_state(model), **fresh}
    device = str(next(iter(state.values()), torch.zeros(0)).device)
    with _restored(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = [(item.name, _example(item, device)) for item in given]
        positional = tuple(tensor for name, tensor in inputs if name is None)
        keywords = {name: tensor for name, tensor in inputs if name is not None} | dict(options)
        recorder = _Recorder(model, state, [tensor for _, tensor in inputs])
        with _module_paths(recorder), enable_python_dispatcher(), recorder, _Looks(recorder):
            result = _run(model, fresh, positional, keywords)
    return recorder.finish(result, model.state_dict())


def _example(given: Given, device: str) -> torch.Tensor:
    """A random argument of the model."""
    dtype = getattr(torch, given.dtype)
    if dtype.is_floating_point:
        return torch.randn(given.shape, device=device).to(dtype)
    high = 2 if given.high is None else given.high
    return torch.randint(high, given.shape, device=device).to(dtype)


def _run(
    model: torch.nn.Module, numbers: dict[str, Any], positional: Sequence[Any], keywords: Mapping[str, Any]
) -> Any:
    if numbers:
        return torch.func.functional_call(model, numbers, tuple(positional), dict(keywords))
    return model(*positional, **keywords)


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, each under every name it has."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _numbers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random numbers for what is on the meta device: small ones, the same for names that share a tensor."""
    known = set(model.state_dict())
    made: dict[int, torch.Tensor] = {}
    found = {}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in _state(model).items():
        if tensor.device.type != "meta":
            continue
        if name not in known:
            raise UsageError(f"the numbers of its buffer {name!r} are not known: build the model on the cpu")
        if id(tensor) not in made:
            fresh = torch.zeros(tensor.shape, dtype=tensor.dtype)
            if tensor.is_floating_point():
                fresh = (torch.randn(tensor.shape, generator=generator) * 0.02).to(tensor.dtype)
                fresh = fresh.abs() + 0.5 if name.endswith("running_var") else fresh
            made[id(tensor)] = fresh
        found[name] = made[id(tensor)]
    return found


@contextlib.contextmanager
def _restored(model: torch.nn.Module) -> Iterator[None]:
    """Buffers that the run counts up or replaces are put back."""
    held = [(module, dict(module._buffers)) for module in model.modules()]
    copies = [(tensor, tensor.clone()) for _, own in held for tensor in own.values() if tensor is not None]
    versions = [tensor._version for tensor, _ in copies]
    try:
        yield
    finally:
        for module, own in held:
            module._buffers.update(own)
        with torch.no_grad():
            for (tensor, copy), version in zip(copies, versions, strict=True):
                if tensor._version != version:
                    tensor.copy_(copy)


@contextlib.contextmanager
def _module_paths(recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which module runs. The hooks are torch's own global ones: none stays on the model."""
    enter = register_module_forward_pre_hook(lambda module, _: recorder.enter(module))
    leave = register_module_forward_hook(lambda module, _, __: recorder.leave(), always_call=True)
    try:
        yield
    finally:
        enter.remove()
        leave.remove()


class _Looks(TorchFunctionMode):
    """Notes the calls that give numbers away without an operation of torch."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _READS and args and isinstance(args[0], torch.Tensor):
            self._recorder.look([args[0]])
        return func(*args, **(kwargs or {}))


class _Recorder(SchemaCheckMode):  # type: ignore[no-untyped-call]
    """Writes down each operation that the dispatcher sees ahead of autograd.

    (torch takes modes of a few classes only there; of this one nothing but the class is used.)
    """

    def __init__(self, model: torch.nn.Module, state: Mapping[str, torch.Tensor], inputs: Sequence[Any]) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self.graph = torch.fx.Graph()
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._stack: list[tuple[str, type]] = []
        self._memory: dict[int, Memory] = {}
        self._owners: dict[int, list[Memory]] = {}
        self._tensors = state
        self._parameters: dict[torch.fx.Node, str] = {}
        self._buffers: dict[torch.fx.Node, str] = {}
        self._constants: dict[str, torch.Tensor] = {}
        self._same_always: set[torch.fx.Node] = set()  # depend on no input and no tensor of the checkpoint
        self._looks: dict[str, None] = {}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, tensor in state.items():
            if id(tensor) not in self._memory:
                node = self._placeholder(f"p_{name.replace('.', '_')}", tensor).node
                (self._parameters if name in parameters else self._buffers)[node] = name
        for tensor in inputs:
            self._placeholder("input", tensor)
        self._first = next(iter(self.graph.nodes))

    # -- who runs ----------------------------------------------------------------------------------

    def enter(self, module: torch.nn.Module) -> None:
        """A module begins."""
        path = self._paths.get(id(module), self._stack[-1][0] if self._stack else "")
        self._stack.append((path, type(module)))

    def leave(self) -> None:
        """A module ends, by a result or by an error."""
        self._stack.pop()

    def look(self, tensors: Sequence[torch.Tensor]) -> None:
        """The code looks at values that are not the same for every input and checkpoint."""
        if any(self._of(tensor).node not in self._same_always for tensor in tensors):
            self._looks.setdefault(_place())

    # -- values ------------------------------------------------------------------------------------

    def _placeholder(self, name: str, tensor: torch.Tensor) -> Memory:
        node = self.graph.placeholder(name)
        node.meta["val"] = _without_numbers(tensor)
        return self._remember(Memory(tensor, node))

    def _remember(self, memory: Memory) -> Memory:
        self._memory[id(memory.tensor)] = memory
        if memory.tensor.numel():
            self._owners.setdefault(memory.tensor.untyped_storage()._cdata, []).append(memory)
        memory.changes = memory.root.changes
        return memory

    def _of(self, tensor: torch.Tensor) -> Memory:
        """What is known of a tensor; one that no operation made is a constant of the code."""
        if id(tensor) in self._memory:
            return self._memory[id(tensor)]
        others = self._owners.get(tensor.untyped_storage()._cdata, [])
        same = next((other for other in others if _geometry(other.tensor) == _geometry(tensor)), None)
        if same is not None:
            return self._remember(Memory(tensor, self._read(same), same))
        if others:
            raise UsageError("it looks at memory of other tensors in a way that cannot be recorded")
        with self.graph.inserting_before(self._first):
            memory = self._placeholder("constant", tensor)
        self._constants[memory.node.name] = tensor.detach().clone()
        self._same_always.add(memory.node)
        return memory

    def _read(self, memory: Memory) -> torch.fx.Node:
        """The node with a value as it is now: a view of what has changed since is taken again."""
        if memory.parent is not None and memory.changes != memory.root.changes:
            memory.node = taken_again(memory.view, self._read(memory.parent), self._emit)
            memory.changes = memory.root.changes
        return memory.node

    def _write(self, memory: Memory, node: torch.fx.Node) -> None:
        """A value is now what a node computes; so is its part of what it is a view of."""
        if memory.parent is None:
            memory.changes += 1
        else:
            base = self._read(memory.parent)
            try:
                self._write(memory.parent, put_back(memory.view, base, node, self._emit))
            except NoInverse as kind:
                raise UsageError(f"it changes a view in place that was taken by {kind}, which has no inverse") from None
        memory.node = node
        memory.changes = memory.root.changes

    def _emit(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], value: Any) -> torch.fx.Node:
        """One more operation; value: its result, of which shapes and dtypes are kept."""
        node = self.graph.create_node("call_function", target, tuple(args), dict(kwargs), operation(target))
        node.meta["val"] = tree_map(_without_numbers, value)
        lines = [f'File "{frame.f_code.co_filename}", line {frame.f_lineno}' for frame in _frames()]
        node.meta["stack_trace"] = "\n".join(lines)
        node.meta["nn_module_stack"] = {str(n): entry for n, entry in enumerate(self._stack)}
        if self._same_always.issuperset(node.all_input_nodes):
            self._same_always.add(node)
        return node

    # -- operations --------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operands = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
        nodes = {id(item): self._read(self._of(item)) for item in operands}
        name, changed = operation(func), _changed(func, args, kwargs)
        if name in _LOOKS or _size_follows_values(func, args):
            self.look(operands)
        if changed is not None:
            self._may_change(changed)
        before = None if changed is None else _geometry(changed)
        result = func(*args, **kwargs)
        results = [item for item in tree_leaves(result) if isinstance(item, torch.Tensor)]
        if name in _NO_VALUE and changed is not None:
            return result
        if changed is None and all(any(item is operand for operand in operands) for item in results):
            return result
        inputs, named = tree_map(lambda item: nodes.get(id(item), item), (args, kwargs))
        if changed is None:
            self._made(func, inputs, named, operands, result)
        elif before == _geometry(changed):
            self._write(self._of(changed), self._new_value(func, inputs, named, changed))
        else:  # unsqueeze_ and the like: another view of the same
            node = self._new_value(func, inputs, named, changed)
            self._remember(Memory(changed, node, self._of(changed), node))
        return result

    def _made(self, func: Any, args: Any, kwargs: Any, operands: Sequence[torch.Tensor], result: Any) -> None:
        """An operation with results of its own, which may be views of its operands."""
        node = self._emit(func, args, kwargs, result)
        owners = {item.untyped_storage()._cdata: self._of(item) for item in reversed(operands)}
        many = isinstance(result, (list, tuple))
        for position, item in enumerate(result if many else [result]):
            if not isinstance(item, torch.Tensor):
                continue
            own = self._emit(operator.getitem, (node, position), {}, item) if many else node
            parent = owners.get(item.untyped_storage()._cdata) if item.numel() else None
            self._remember(Memory(item, own, parent, None if parent is None else own))

    def _may_change(self, tensor: torch.Tensor) -> None:
        root = self._of(tensor).root
        if root.node in self._parameters:
            raise UsageError(f"it changes its parameter {self._parameters[root.node]!r} while it runs")

    def _new_value(self, func: Any, args: Any, kwargs: Any, changed: torch.Tensor) -> torch.fx.Node:
        """The operation in place as one that gives a new value."""
        aten, name = torch.ops.aten, operation(func)
        if name == "copy":
            return self._copied(args[0], args[1])
        if name == "zero" or (name == "fill" and changed.is_floating_point()):
            zeros = self._emit(aten.zeros_like.default, args[:1], {}, changed)
            if name == "zero" or args[1] == 0:
                return zeros
            add = aten.add.Tensor if isinstance(args[1], torch.fx.Node) else aten.add.Scalar
            return self._emit(add, (zeros, args[1]), {}, changed)
        packet = getattr(getattr(torch.ops, func.namespace), name, None)
        overload = getattr(packet, func._overloadname, None)
        if overload is None or overload._schema.is_mutable:
            raise UsageError(f"it changes a value in place by {func}, for which nothing else is known")
        return self._emit(overload, args, kwargs, changed)

    def _copied(self, into: torch.fx.Node, source: torch.fx.Node) -> torch.fx.Node:
        """What is copied, in the shape and dtype of what it is copied into."""
        wanted, found = into.meta["val"], source.meta["val"]
        if wanted.dtype != found.dtype:
            value = found.to(wanted.dtype)
            source = self._emit(torch.ops.aten.to.dtype, (source, wanted.dtype), {}, value)
        if wanted.shape != found.shape:
            source = self._emit(torch.ops.aten.expand.default, (source, list(wanted.shape)), {}, wanted)
        return source

    def finish(self, result: Any, state: Mapping[str, torch.Tensor]) -> Record:
        """The record of the run that gave this result."""
        outputs = [self._read(self._of(item)) for item in _tensors(result)]
        if not outputs:
            raise UsageError(f"its result, a {type(result).__name__}, holds no tensors")
        self.graph.output(tuple(outputs))
        for node in reversed(list(self.graph.nodes)):
            if not node.users and (node.op == "call_function" or node.name in self._constants):
                self.graph.erase_node(node)
        parameters = {node.name: name for node, name in self._parameters.items()}
        buffers = {node.name: name for node, name in self._buffers.items()}
        tensors = {name: self._tensors[name] for name in buffers.values() if name not in state}
        signature = Signature(
            parameters, buffers, {name: name for name in self._constants}, [OutputSpec() for _ in outputs]
        )
        return Record(self.graph, signature, dict(state), {**self._constants, **tensors}, tuple(self._looks))


def _changed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The operand that an operation changes in place."""
    schema = func._schema
    if not schema.is_mutable:
        return None
    written = [
        args[n] if n < len(args) else kwargs.get(item.name)
        for n, item in enumerate(schema.arguments)
        if item.alias_info is not None and item.alias_info.is_write
    ]
    found = [item for item in written if isinstance(item, torch.Tensor)]
    if len(found) != 1 or found[0] is not args[0]:
        raise UsageError(f"it changes values in place by {func}, which cannot be recorded")
    changed: torch.Tensor = found[0]
    return changed


def _size_follows_values(func: Any, args: Sequence[Any]) -> bool:
    """Whether the result's shape depends on the values."""
    if operation(func) == "one_hot":
        return len(args) < 2 or args[1] < 0
    if operation(func) == "index":
        return any(item is not None and item.dtype in (torch.bool, torch.uint8) for item in args[1])
    if operation(func) == "where":
        return len(args) == 1
    return torch.Tag.dynamic_output_shape in func.tags or operation(func) in ("argwhere", "nonzero_numpy")


def _tensors(result: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for leaf in tree_leaves(result):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found.extend(_tensors([getattr(leaf, field.name) for field in dataclasses.fields(leaf)]))
    return found


def _geometry(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset()


def _without_numbers(value: Any) -> Any:
    """A tensor's shape and dtype."""
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, torch.Tensor) else value


def _frames() -> list[FrameType]:
    """The calls from the model to here, outermost first, without those of this module."""
    frame: FrameType | None = sys._getframe(1)
    found = []
    while frame is not None and frame.f_code is not _run.__code__:
        if frame.f_code.co_filename not in (__file__, _VIEWS):
            found.append(frame)
        frame = frame.f_back
    return found[::-1]


def _place() -> str:
    """Where the model's code stands now, as `net.py:12`: the innermost frame outside torch."""
    found = _frames()
    own = [frame for frame in found if "/torch/" not in frame.f_code.co_filename] or found
    return f"{Path(own[-1].f_code.co_filename).name}:{own[-1].f_lineno}" if own else "the model"
