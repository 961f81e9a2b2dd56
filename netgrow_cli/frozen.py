"""Frozen dataclasses whose definition costs a quarter of what the standard library's does.

`dataclasses` compiles six functions for each class, every time a program starts, which is a quarter of the start of a
short command here. (From Python 3.13 on it compiles them at once.) `frozen` leaves the fields to it, compiles
`__init__`, and has the other five from closures; `fields`, `replace`, `asdict` and pickling work as ever.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        """What type checkers go by; in `typing` from Python 3.11 on."""
        return lambda decorator: decorator


Class = TypeVar("Class")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def frozen(cls: type[Class]) -> type[Class]:
    """Make a class one of `dataclasses.dataclass(frozen=True)`.

    Of `dataclasses.field` it knows `default`, `default_factory`, `compare` and `repr`, and there is no `__post_init__`.
    """
    dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    known = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = frozenset(field.name for field in known)
    compared = _values_of(*(field.name for field in known if field.compare))
    shown = [field.name for field in known if field.repr]

    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __eq__(self: Any, other: object) -> bool:
        return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(compared(self))

    def __setattr__(self: Any, name: str, value: object) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    for method in (_init(known), __repr__, __eq__, __hash__, __setattr__, __delattr__):
        method.__qualname__ = f"{cls.__qualname__}.{method.__name__}"
        # A class that says itself how it is shown or compared keeps that, as with `dataclass`. (Python gives one with
        # an `__eq__` of its own an empty `__hash__`.)
        if cls.__dict__.get(method.__name__) is None:
            setattr(cls, method.__name__, method)
    return cls


def _values_of(*names: str) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


def _init(fields: tuple[dataclasses.Field[Any], ...]) -> Callable[..., None]:
    """`__init__`, which sets the fields past the guard that keeps others from it."""
    given: dict[str, Any] = {"_set": object.__setattr__, "_made": dataclasses.MISSING}
    words, lines = ["self"], []
    for field in fields:
        name, value = field.name, field.name
        if field.default is not dataclasses.MISSING:
            given[f"_default_{name}"] = field.default
            words.append(f"{name}=_default_{name}")
        elif field.default_factory is not dataclasses.MISSING:
            given[f"_factory_{name}"] = field.default_factory
            words.append(f"{name}=_made")
            value = f"_factory_{name}() if {name} is _made else {name}"
        else:
            words.append(name)
        lines.append(f"  _set(self, {name!r}, {value})")
    text = f"def outer({', '.join(given)}):\n def __init__({', '.join(words)}):\n" + "\n".join(lines or ["  pass"])
    made: dict[str, Any] = {}
    exec(f"{text}\n return __init__", made)
    init: Callable[..., None] = made["outer"](**given)
    init.__annotations__ = {**{field.name: field.type for field in fields}, "return": None}
    return init
