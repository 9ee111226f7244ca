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
INCLUDED = re.compile(r"\ASee \[\S+\]\(\.\./(\S+)\)\.$")  # all of a page that is a file outside docs/
COMMANDS = "<!-- subcommands -->"
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
    for marker, make in ((COMMANDS, commands), (NAMES, public_names)):
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


def on_page_content(content: str, **kwargs: Any) -> str:
    """Mark the names of options, which browsers would break after their hyphens."""
    return re.sub(r"<code>((?:-\w, )?--[^<]{1,40})</code>", r'<code class="option">\1</code>', content)


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


def commands() -> str:
    """Return a section for each subcommand that `--help` lists."""
    listed = re.search(r"\{(.*?)\}", help_lines("--help")[0])
    assert listed is not None, "--help lists no subcommands"
    return "\n\n".join(f"## {command}\n\n{options(command)}" for command in listed[1].split(","))


def help_lines(*args: str) -> list[str]:
    """Return what a command line prints, one line for each option."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100000"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        flowers_pl.main(list(args))
    return printed.getvalue().splitlines()


def options(command: str) -> str:
    """Return a subcommand's `--help` as a table for each group of options."""
    lines = help_lines(command, "--help")
    groups: list[tuple[str, list[str]]] = [("", [])]  # titles and rows
    summary = pending = ""
    for line in lines[1:]:
        option = re.match(r"  (-\S.*?)(?:\s{2,}(.*)|$)", line)
        rows = groups[-1][1]
        if option is not None:
            pending = option[1]
            rows.append(row(pending, option[2] or ""))
        elif re.match(r"\S.*:$", line):
            groups.append(("" if line == "options:" else f"#### {line[:1].upper()}{line[1:-1]}", []))
        elif line.strip() and rows:  # a long option's help stands below it
            rows[-1] = row(pending, line.strip())
        elif line.strip() and len(groups) == 1:
            summary += line
    head = "| option | default | what it does |\n|---|---|---|"
    tables = ["\n".join([title, "", head, *rows]) for title, rows in groups if rows]
    assert tables, f"{command} --help lists no option"
    return "\n\n".join([summary, *tables])


def row(option: str, text: str) -> str:
    """Return a line of a table; metavars, which repeat an option's name, are left out."""
    names = dict.fromkeys(name.split()[0] for name in option.split(", "))
    what = re.sub(r" ?\((?:required, )?type: .*\)$", "", text)
    choices = re.search(r"\{(?!true,false)(.*?)\}", option)
    if choices is not None:
        what += f" One of {choices[1].replace(',', ', ')}."
    default = re.search(r"default: (.*?)(?:, known subclasses: .*)?\)$", text)
    cells = (
        ", ".join(f"`{name}`" for name in names),
        f"`{default[1]}`" if default else "",
        escaped(what[:1].upper() + what[1:]),
    )
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Return text for a cell: quoted names become code, and the rest stays as it is written."""
    parts = re.split(r"`+(.+?)`+", text)
    parts[::2] = [re.sub(r"([*_\[\]|])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    return "".join(parts)


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
