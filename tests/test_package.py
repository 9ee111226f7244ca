"""What the package shows to the outside: its public names, and what a wheel of it holds."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import flowers_pl

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", flowers_pl.__all__)
def test_a_public_name_is_documented_by_an_example(name: str) -> None:
    """The doctests themselves are run by pytest's --doctest-modules."""
    thing = getattr(flowers_pl, name)
    assert thing.__doc__, f"{name} has no docstring"
    examples = doctest.DocTestFinder(recurse=False).find(thing, name, import_module(thing.__module__))
    assert any(one.examples for one in examples), f"{name} has no example"


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, flowers_pl; assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_wheel_holds_every_package(tmp_path: Path) -> None:
    """An editable install stays green where a sub-package is missing from the wheel."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("flowers_pl/")}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "flowers_pl").rglob("*") if path.is_file()}
    assert inside == {name for name in ours if "__pycache__" not in name}
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", "import flowers_pl; print(flowers_pl.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert Path(found.stdout.strip()) == site / "flowers_pl" / "__init__.py"
