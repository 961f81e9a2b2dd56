"""The README and the docs show what netgrow prints."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_operations_is_that_of_the_registry() -> None:
    text = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    assert _refresh().with_operations(text) == text


def test_outputs_in_the_docs_are_what_is_printed() -> None:
    refresh = _refresh()
    texts = {page.name: page.read_text(encoding="utf-8") for page in refresh.PAGES}
    assert texts["README.md"].count("```console") >= 5
    for name, text in texts.items():
        assert _rounded(refresh.refreshed(text)) == _rounded(text), name


def _refresh() -> Any:
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rounded(text: str) -> str:
    """Rounding errors differ between machines; any below 1e-12 is as good as any other, and as none."""
    text = text.replace("outputs are identical on", "outputs differ by 1e-16 of their size on")
    return re.sub(r"\b\d\.\d+e-1[2-9]\b", "1e-16", text)
