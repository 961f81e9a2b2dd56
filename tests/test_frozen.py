"""`frozen` makes what `dataclasses.dataclass(frozen=True)` makes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netgrow_cli.frozen import frozen

Decorator = Callable[[type], type]


def _classes(decorator: Decorator) -> tuple[type, type, type, type]:
    @decorator
    class Unit:
        """A unit."""

        name: str
        size: int = 1
        why: str = dataclasses.field(default="", compare=False)
        marks: Mapping[str, int] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @decorator
    class Wide(Unit):
        """One with a field more, and another default."""

        size: int = 7
        lanes: tuple[int, ...] = ()

    @decorator
    class Nothing:
        """No fields."""

    @decorator
    class Own:
        """One that says itself how it is shown, compared and hashed."""

        value: int

        def __repr__(self) -> str:
            return "mine"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own)

        def __hash__(self) -> int:
            return 5

    return Unit, Wide, Nothing, Own


OURS = _classes(frozen)
THEIRS = _classes(dataclasses.dataclass(frozen=True))


@frozen
class Pickled:
    """At the top of a module, where pickle finds it."""

    a: int
    b: tuple[int, ...] = (1, 2)


CALLS: list[tuple[int, tuple[Any, ...], dict[str, Any]]] = [
    (0, ("a",), {}),
    (0, ("a", 2), {}),
    (0, (), {"size": 3, "name": "b", "why": "so"}),
    (0, ("a",), {"why": "because"}),
    (0, ("a",), {"marks": {"x": 1}}),
    (1, ("a",), {}),
    (1, ("a",), {"lanes": (1, 2), "size": 1}),
    (2, (), {}),
    (3, (4,), {}),
    (3, (5,), {}),
]


@pytest.mark.parametrize(("place", "args", "named"), CALLS)
def test_instances_are_alike(place: int, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    ours, theirs = OURS[place](*args, **named), THEIRS[place](*args, **named)
    assert repr(ours) == repr(theirs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert ours.__dict__ == theirs.__dict__
    assert hash(ours) == hash(theirs)
    assert dataclasses.replace(ours) == ours == copy.deepcopy(ours)


def test_comparisons_are_alike() -> None:
    ours = [OURS[place](*args, **named) for place, args, named in CALLS]
    theirs = [THEIRS[place](*args, **named) for place, args, named in CALLS]
    for one, same_one in zip(ours, theirs, strict=True):
        assert (one == 1) is False and (one != 1) is True
        for other, same_other in zip(ours, theirs, strict=True):
            assert (one == other) is (same_one == same_other)


@given(st.integers(), st.text(), st.integers(), st.text())
def test_equal_means_hashes_alike(size: int, name: str, other_size: int, other_name: str) -> None:
    one, other = OURS[0](name, size), OURS[0](other_name, other_size)
    assert (one == other) is ((name, size) == (other_name, other_size))
    assert hash(one) == hash((name, size))


@pytest.mark.parametrize(
    ("args", "named"), [((), {}), (("a", 1, "", {}, 9), {}), (("a",), {"name": "b"}), (("a",), {"height": 2})]
)
def test_wrong_arguments(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    said = []
    for cls in (OURS[0], THEIRS[0]):
        with pytest.raises(TypeError) as caught:
            cls(*args, **named)
        said.append(str(caught.value).split(".")[-1])
    assert said[0] == said[1]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", ["name", "size", "another"])
def test_nothing_can_be_set(place: int, name: str) -> None:
    for classes in (OURS, THEIRS):
        value = classes[place](*(["a"] if place < 2 else []))
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{name}'"):
            setattr(value, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot delete field '{name}'"):
            delattr(value, name)


def test_each_has_its_own_default() -> None:
    one, other = OURS[0]("a"), OURS[0]("b")
    assert one.marks == {} and one.marks is not other.marks


def test_fields_and_signatures() -> None:
    for ours, theirs in zip(OURS[:3], THEIRS[:3], strict=True):
        assert [(field.name, field.type) for field in dataclasses.fields(ours)] == [
            (field.name, field.type) for field in dataclasses.fields(theirs)
        ]
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
        assert ours.__match_args__ == theirs.__match_args__
        assert dataclasses.is_dataclass(ours)


def test_pickled() -> None:
    value = Pickled(3, b=(4,))
    assert pickle.loads(pickle.dumps(value)) == value
