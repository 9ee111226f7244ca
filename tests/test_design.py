"""DESIGN.md: imports run down its list of packages and files, never up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flowers_pl"


def listed() -> list[str]:
    """All modules in the order of DESIGN.md's list, as "package.file"."""
    rows = re.findall(
        r"^\| `(\w+)` \| (`\w+`(?:, `\w+`)*) \|$", (ROOT / "DESIGN.md").read_text(), re.MULTILINE
    )
    return [f"{package}.{name}" for package, files in rows for name in re.findall(r"`(\w+)`", files)]


def imports(file: Path) -> list[str]:
    """The modules of this project that a file imports, anywhere in it, as "package.file" or "package"."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{file} has a relative import, of which this test does not know the place"
            )
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flowers_pl":
            assert node.module is not None
            inside = node.module.removeprefix("flowers_pl").removeprefix(".")
            named = [f"{inside}.{alias.name}" for alias in node.names]
            found += [one for one in named if (PACKAGE / f"{one.replace('.', '/')}.py").exists()] or [inside]
        elif isinstance(node, ast.Import):
            found += [
                alias.name.removeprefix("flowers_pl").removeprefix(".")
                for alias in node.names
                if alias.name.split(".")[0] == "flowers_pl"
            ]
    return [one for one in found if one]


def test_every_file_is_listed() -> None:
    files = {f"{path.parent.name}.{path.stem}" for path in PACKAGE.glob("*/[!_]*.py")}
    assert sorted(files) == sorted(listed())


def test_the_ground_floor_holds_packages_only() -> None:
    names = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert names == {"__init__.py", "__main__.py", "py.typed"}


def test_imports_run_one_way() -> None:
    order = listed()
    wrong = [
        f"{module} imports {imported}"
        for place, module in enumerate(order)
        for imported in imports(PACKAGE / f"{module.replace('.', '/')}.py")
        if imported not in order[:place]
    ]
    assert not wrong
