"""Hooks of MkDocs: pages that are made from the repository's own files, the parser and the public names."""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import flowers_pl

ROOT = Path(__file__).parents[1]
INCLUDED = re.compile(r"^<!-- include (\S+) -->$", re.MULTILINE)
OPTIONS = re.compile(r"^<!-- options (\w+) -->$", re.MULTILINE)
NAMES = "<!-- public names -->"
PAGES = {
    "DESIGN.md": "design.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
TITLES = {
    "core": "Errors and the system",
    "data": "Data",
    "network": "Network",
    "training": "Training",
    "evaluation": "Evaluation",
    "explain": "Explanations",
    "export": "Exports",
    "runs": "Runs",
    "cli": "Command line",
}


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Fill in what a page only names; MkDocs calls this for each page."""
    markdown = INCLUDED.sub(lambda found: included(found[1]), markdown)
    markdown = OPTIONS.sub(lambda found: options(found[1]), markdown)
    return markdown.replace(NAMES, public_names()) if NAMES in markdown else markdown


def included(name: str) -> str:
    """Return a Markdown file outside docs/, with its links as seen from docs/.

    A link to a file that the site does not hold becomes the file's name.
    """

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        if "://" in target or target.startswith("#"):
            return found[0]
        path = os.path.relpath(ROOT / Path(name).parent / target, ROOT).replace(os.sep, "/")
        if path in PAGES or path.startswith("docs/"):
            return f"[{text}]({PAGES.get(path) or path.removeprefix('docs/')})"
        return f"`{path}`"

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", link, (ROOT / name).read_text(encoding="utf-8"))


def options(command: str) -> str:
    """Return a subcommand's `--help` as a table for each group of options."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100000"}),  # one line for each option
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        flowers_pl.main([command, "--help"])
    usage, *lines = printed.getvalue().splitlines()
    made: list[str] = []
    for line in lines:
        option = re.match(r"  (-\S.*?)(?:\s{2,}(.*)|$)", line)
        if option is not None:
            made.append(row(option[1], option[2] or ""))
        elif re.match(r"\S.*:$", line):
            title = [] if line == "options:" else [f"#### {line[:-1]}", ""]
            made += ["", *title, "| option | what it does | default |", "|---|---|---|"]
        elif made and line.strip() and made[-1].startswith("| `"):  # help that stands below a long option
            made[-1] = row(made[-1].split("`")[1], line.strip())
        elif line.strip():
            made.append(line.strip())
    assert any(line.startswith("| `") for line in made), f"{usage}: --help lists no option"
    return "\n".join(made)


def row(option: str, text: str) -> str:
    """Return a line of a table; metavars, which repeat an option's name, are left out."""
    names = dict.fromkeys(name.split()[0] for name in option.split(", "))
    what = re.sub(r" ?\((?:required, )?type: .*\)$", "", text)
    choices = re.search(r"\{(?!true,false)(.*?)\}", option)
    if choices is not None:
        what += f" One of {choices[1].replace(',', ', ')}."
    default = re.search(r"default: (.*?)(?:, known subclasses: .*)?\)$", text)
    cells = (
        f"`{', '.join(names)}`",
        escaped(what[:1].upper() + what[1:]),
        f"`{default[1]}`" if default else "",
    )
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Return text for a cell: what Markdown or HTML would take for markup stays as it is written."""
    return re.sub(r"([*_`\[\]|])", r"\\\1", html.escape(text, quote=False))


def public_names() -> str:
    """Return mkdocstrings' directives for all public names, by package."""
    modules = {name: getattr(flowers_pl, name).__module__ for name in flowers_pl.__all__}
    made = []
    for package, title in TITLES.items():
        members = [name for name in modules if modules[name].split(".")[1] == package]
        made += [f"## {title}", ""]
        for name in sorted(members, key=lambda name: (modules[name], name)):
            made += [f"::: {modules[name]}.{name}", ""]
    return "\n".join(made)
