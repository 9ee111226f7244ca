"""One sentence for a mistake on the command line or in a config file.

Nothing here depends on the wording of a library: the option at fault is found by trying each one alone, and
what it should be is read from the type that its parameter is declared with.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser

from flowers_pl.core.errors import FlowersError

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def nearest(given: str, known: Iterable[str]) -> str:
    """Suggest the known name that is closest to a given one.

    >>> nearest("--data.rot", ["--data.root", "--model.seed"])
    '; do you mean --data.root?'
    """
    found = difflib.get_close_matches(given, known, 1, cutoff=0.75)
    return f"; do you mean {found[0]}?" if found else ""


def explain_mistake(
    parser: ArgumentParser, types: Mapping[str, Any], command: str, args: list[str], error: Exception
) -> str:
    """Say in one sentence what is wrong with a command line.

    Args:
        parser: has refused it.
        types: of the options, by name.
        command: the subcommand.
        args: the command line, without the subcommand.
        error: what the parser raised.

    Raises:
        FlowersError: the mistake is in a config file, which is named.
    """
    known = [name for name, _ in parser.get_defaults().items() if name != "config"]
    pairs = list(_given_options(args))
    for option, value in pairs:
        if option in ("-c", "--config"):
            _check_config(parser, types, command, known, value)
    for option, _ in pairs:
        name = option.removeprefix("--").rstrip("+")
        if option not in ("-c", "-h") and not _is_known(name, known):
            options = ["--help", "--config", "--print_config", *(f"--{one}" for one in known)]
            return f"{option} is no option{nearest(option, options)}"
    for option, value in pairs:
        name = option.removeprefix("--")
        if name in types and not _fits(parser, name, value):
            return _expectation(name, types[name], value)
    return " ".join(str(error).split())


def _given_options(args: list[str]) -> Iterator[tuple[str, str]]:
    """Pair each option of a command line with its value, which is empty where there is none."""
    for place, arg in enumerate(args):
        if not arg.startswith("-") or arg.lstrip("-")[:1].isdigit():
            continue
        option, equals, value = arg.partition("=")
        following = args[place + 1] if place + 1 < len(args) else ""
        yield option, value if equals else following


def _is_known(name: str, known: list[str]) -> bool:
    """Whether a name is an option, the beginning of one, or inside one that takes a class."""
    if name in ("help", "config", "print_config"):
        return True
    return any(one.startswith(name) or name.startswith(f"{one}.") for one in known)


def _fits(parser: ArgumentParser, name: str, value: Any) -> bool:
    """Whether the parser takes a value for an option, tried alone."""
    if isinstance(value, str):
        alone = [[f"--{name}"]] if not value or value.startswith("--") else []  # a switch, before another one
        return any(_takes(parser.parse_args, args) for args in ([f"--{name}={value}"], *alone))
    return _takes(parser.parse_object, _nested(name, value))


def _takes(parse: Callable[[Any], Any], given: Any) -> bool:
    try:
        parse(given)
    except Exception:
        return False
    return True


def _nested(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    return dict(value)


def _expectation(name: str, kind: Any, value: Any) -> str:
    words = list(dict.fromkeys(_words(kind)))
    wanted = " or ".join(words) if words else f"a value that fits {kind}"
    return f"--{name} must be {wanted}, not {value}"


def _words(kind: Any) -> Iterator[str]:
    """Describe a type as a user knows it.

    >>> " or ".join(_words(int | Literal["all"]))
    'a whole number or all'
    """
    if get_origin(kind) in (Union, types.UnionType):
        for part in get_args(kind):
            yield from _words(part)
    elif get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif get_origin(kind) is list:
        yield """a list such as '["a", "b"]'"""
    elif kind in WORDS:
        yield WORDS[kind]
    elif isinstance(kind, type):
        yield f"a {kind.__name__}"


class _Loader(yaml.SafeLoader):
    """Takes no text for a date, as jsonargparse's loader does not."""


_Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check_config(
    parser: ArgumentParser, types: Mapping[str, Any], command: str, known: list[str], value: str
) -> None:
    """Raise a FlowersError for the first mistake in a config file, or in settings given in its place."""
    path = Path(value)
    inline = value.lstrip().startswith("{")
    source = "--config" if inline else f"--config: {value!r}"
    try:
        text = value if inline else path.read_text(encoding="utf-8")
        settings = yaml.load(text, _Loader)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FlowersError(f"{source} cannot be read ({reason}); give a YAML file.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise FlowersError(f"{source} is not valid YAML{where}; correct it.") from error
    if not isinstance(settings, dict):
        raise FlowersError(f"{source} holds no settings; configs/recipe.yaml shows what they look like.")
    for name, setting in _flat(settings):
        if not _is_known(name, known):
            raise FlowersError(f"--config: {name} is no setting of {command}{nearest(name, known)} ({value})")
        if name in types and not _fits(parser, name, setting):
            raise FlowersError(f"{source}: {_expectation(name, types[name], setting)}.")


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and "class_path" not in value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
