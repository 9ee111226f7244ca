"""DESIGN.md: every module has a room, and imports only from rooms above its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_modules_import_from_rooms_above_their_own() -> None:
    text = (ROOT / "DESIGN.md").read_text()
    rooms = [
        name
        for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)\.py`", row)
    ]
    modules = {path.stem: path for path in (ROOT / "flowers_pl").glob("[!_]*.py")}
    assert sorted(rooms) == sorted(modules)
    for place, room in enumerate(rooms):
        for node in ast.walk(ast.parse(modules[room].read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flowers_pl."):
                assert node.module is not None
                assert node.module.split(".")[1] in rooms[:place], f"{room}.py imports from {node.module}"
