"""README.md and docs/ name only what exists: options, files, links, public names, checks, printed lines."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import yaml

import flowers_pl
from flowers_pl.cli.app import HELP

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("benchmarks/*.md")])
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*(?:\.\w+)*")
FOREIGN = {  # options of other programs: http.server, pip, pytest, mkdocs, tensorboard, torchrun, sbatch
    *(
        "--directory",
        "--dist",
        "--numprocesses",
        "--check",
        "--editable",
        "--gpus-per-node",
        "--logdir",
        "--master_addr",
        "--master_port",
        "--max-restarts",
    ),
    *(
        "--nnodes",
        "--node_rank",
        "--nodes",
        "--nproc_per_node",
        "--ntasks-per-node",
        "--requeue",
        "--run-slow",
    ),
    *("--samples_per_plugin", "--signal", "--site-dir", "--strict"),
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def options_of(command: str) -> set[str]:
    """The options of a command, as its --help lists them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        flowers_pl.main([command, "--help"])
    return set(OPTION.findall(printed.getvalue()))


@pytest.fixture(scope="session")
def options() -> dict[str, set[str]]:
    """The options of every command that a page shows."""
    shown = {command for page in PAGES for command, _ in commands(page.read_text())}
    return {command: options_of(command) for command in sorted(shown)}


def commands(text: str) -> list[tuple[str, set[str]]]:
    """The commands of a page's shell blocks, each with the options that it gives."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.search(r"-m flowers_pl ([a-z]+)(.*)", line.partition("#")[0]) for line in lines]
    return [(one[1], set(OPTION.findall(one[2]))) for one in found if one is not None]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@each_page
def test_every_option_exists(page: Path, options: dict[str, set[str]]) -> None:
    text = page.read_text()
    for command, given in commands(text):
        assert given <= options[command], f"{command} has no {given - options[command]}"
    known = FOREIGN.union(OPTION.findall(HELP), *options.values())
    if page.parent.name == "benchmarks":
        known |= set(OPTION.findall(" ".join(path.read_text() for path in page.parent.glob("*.py"))))
    assert set(OPTION.findall(text)) <= known


@each_page
def test_every_file_exists(page: Path) -> None:
    """Files of the repository that are named as code."""
    named = re.findall(r"`((?:tests|configs|docs|benchmarks|flowers_pl|\.ci)/[\w./-]+)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@each_page
def test_python_on_a_page_imports_public_names(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        compile(block, str(page), "exec")
        for names in re.findall(r"^from flowers_pl import (.*)$", block, re.MULTILINE):
            assert set(names.split(", ")) <= set(flowers_pl.__all__)


def test_the_readme_shows_what_the_commands_print() -> None:
    """Its lines are those of the gallery, which docs/make_gallery.py made by running the commands."""
    gallery = (ROOT / "docs" / "gallery").glob("*.txt")
    printed = {line for file in gallery for line in file.read_text().splitlines()}
    shown = [
        line for block in blocks((ROOT / "README.md").read_text(), "console") for line in block.splitlines()
    ]
    assert len(shown) > 20
    assert not [line for line in shown if line.strip() != "..." and line not in printed]


def test_pre_commit_runs_checks_of_the_ci() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    run = (ROOT / ".ci" / "run").read_text().splitlines()
    assert entries == [line.strip().removesuffix(" .") for line in run if re.match(" *(ruff|mypy)", line)]
