"""The command line stands on the public API of its libraries."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CLI = sorted((Path(__file__).parents[1] / "flowers_pl" / "cli").glob("*.py"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("file", CLI, ids=lambda file: file.stem)
def test_no_private_attribute_of_a_library_is_used(file: Path) -> None:
    used = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and is_private(node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    imported = [
        f"line {node.lineno}: {alias.name}"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if is_private(alias.name)
    ]
    assert used + imported == []


@pytest.mark.parametrize("file", CLI, ids=lambda file: file.stem)
def test_no_private_method_of_a_library_is_overridden(file: Path) -> None:
    overridden = [
        f"{node.name}.{method.name}"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and node.bases
        for method in node.body
        if isinstance(method, ast.FunctionDef) and is_private(method.name)
    ]
    assert overridden == []
