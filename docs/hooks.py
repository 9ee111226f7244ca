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


def on_page_content(content: str, **kwargs: Any) -> str:
    """Mark the names of options, which browsers would break after their hyphens."""
    return re.sub(r"<code>((?:-\w, )?--[\w.]{1,36})</code>", r'<code class="option">\1</code>', content)


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
    groups: list[tuple[str, list[str]]] = [
        ("", [])
    ]  # title and table rows; what stands before them is the summary
    summary = ""
    for line in printed.getvalue().splitlines()[1:]:
        option = re.match(r"  (-\S.*?)(?:\s{2,}(.*)|$)", line)
        rows = groups[-1][1]
        if option is not None:
            rows.append(row(option[1], option[2] or ""))
        elif re.match(r"\S.*:$", line):
            groups.append(("" if line == "options:" else f"#### {line[:1].upper()}{line[1:-1]}", []))
        elif line.strip() and rows:  # a long option's help stands below it
            rows[-1] = row(rows[-1].split("`")[1], line.strip())
        elif line.strip() and len(groups) == 1:
            summary += line
    head = "| option | what it does | default |\n|---|---|---|"
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
