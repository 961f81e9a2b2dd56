"""Layouts as text, both ways: `fc1`, `enc_a + enc_b`, `(conv5 49)`, `(4 rnn)`, `(kv_heads groups head_dim)`.

The notation of einops with `+` for concatenation. Axes stand side by side; a grid is in parentheses, its
last factor varies fastest; a concatenation inside a grid has parentheses of its own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from netgrow_cli.topology.layout import Concat, Fixed, Layout, Width, concat, product

_DEEPEST = 50
_TOKEN = re.compile(r"\s*(?:([()+])|([^\s()+]+))")


class NotationError(ValueError):
    """A text that is no layout; the message shows it and where it breaks."""


def axis_text(layout: Layout, name: Callable[[Width], str]) -> str:
    """One axis as text. name: gives a width's name."""
    if isinstance(layout, Width):
        return name(layout)
    if isinstance(layout, Fixed):
        return str(layout.size)
    if isinstance(layout, Concat):
        return " + ".join(axis_text(part, name) for part in layout.parts)
    return "(" + " ".join(_factor_text(factor, name) for factor in layout.factors) + ")"


def layout_text(axes: Sequence[Layout], name: Callable[[Width], str]) -> str:
    """All axes of a tensor, two spaces between them; `scalar` for none."""
    return "  ".join(axis_text(axis, name) for axis in axes) or "scalar"


def parse_axes(text: str, width: Callable[[str], Width]) -> tuple[Layout, ...]:
    """The axes that a text describes. width: gives the width of a name. Raises NotationError."""
    tokens = _tokens(text)
    if tokens == ["scalar"]:
        return ()
    axes, position = _axes(tokens, 0, text, width)
    if position != len(tokens):
        raise NotationError(f"{text!r}: {tokens[position]!r} closes nothing")
    return tuple(axes)


def _factor_text(layout: Layout, name: Callable[[Width], str]) -> str:
    text = axis_text(layout, name)
    return f"({text})" if isinstance(layout, Concat) else text


def _tokens(text: str) -> list[str]:
    tokens = [mark or word for mark, word in _TOKEN.findall(text)]
    if "".join(tokens) != "".join(text.split()):
        raise NotationError(f"{text!r} is no layout")
    depth = itertools.accumulate((token == "(") - (token == ")") for token in tokens)
    if max(depth, default=0) > _DEEPEST:
        raise NotationError(f"{text[:40]!r}...: more than {_DEEPEST} parentheses inside each other")
    return tokens


def _axes(tokens: list[str], position: int, text: str, width: Callable[[str], Width]) -> tuple[list[Layout], int]:
    axes: list[Layout] = []
    while position < len(tokens) and tokens[position] != ")":
        part, position = _term(tokens, position, text, width)
        parts = [part]
        while position < len(tokens) and tokens[position] == "+":
            part, position = _term(tokens, position + 1, text, width)
            parts.append(part)
        axes.append(concat(parts))
    return axes, position


def _term(tokens: list[str], position: int, text: str, width: Callable[[str], Width]) -> tuple[Layout, int]:
    token = tokens[position] if position < len(tokens) else "the end"
    if token == "(":
        factors, position = _axes(tokens, position + 1, text, width)
        if position >= len(tokens):
            raise NotationError(f"{text!r}: a parenthesis is not closed")
        if not factors:
            raise NotationError(f"{text!r}: empty parentheses")
        return product(factors), position + 1
    if token in (")", "+", "the end"):
        raise NotationError(f"{text!r}: a name, a number or '(' was expected, found {token}")
    if token.isascii() and token.isdecimal():
        return Fixed(int(token), "a literal size"), position + 1
    return width(token), position + 1
