"""The parser of each subcommand: options from signatures, defaults from the recipe, a run or a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
from collections.abc import Callable
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_dumper
from lightning import Trainer
from torchvision.models import MobileNet_V2_Weights

from flowers_pl.cli.commands import SUMMARIES
from flowers_pl.cli.mistakes import explain_mistake
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.paths import expand_home, expanded
from flowers_pl.core.text import escape_bytes, unescape_bytes
from flowers_pl.packs.remote import check_address, is_address

PATHS = (
    "data.root", "data.exclude", "data.review", "data.soft_labels", "data.split", "data.test_root",
    "data.predict_root", "data.cache_dir", "model.weights", "teacher_weights", "ckpt_path", "refit",
    "exported", "out", "root", "images", "output", "write", "review", "apply", "to",
    "certfile", "keyfile", "runtime",
)  # fmt: skip
NAMES = {"grouped", "notebook", *MobileNet_V2_Weights.__members__}  # that stand where a path may
PROGRAM = "python -m flowers_pl"
RECIPE = {
    "trainer.max_epochs": -1,  # as many as the stages have
    "trainer.num_sanity_val_steps": 0,
    "trainer.use_distributed_sampler": False,  # BatchSampler divides each batch among the ranks itself
    "trainer.deterministic": "warn",
    "trainer.enable_model_summary": False,
}


class _Dumper(yaml.SafeDumper):
    """Quotes texts that jsonargparse would read as numbers, such as a run called 12e4567."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
set_dumper("yaml", lambda data: yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class Options:
    """The options of one subcommand.

    Args:
        command: the subcommand.
        settings: config files whose settings are defaults.
    """

    def __init__(self, command: str, settings: list[Path] | None = None) -> None:
        self.command = command
        self.types: dict[str, Any] = {}
        self.parser = ArgumentParser(
            prog=f"{PROGRAM} {command}",
            usage=f"{PROGRAM} {command} [options]",  # argparse's own lists all options, as the help does
            description=SUMMARIES[command],
            default_config_files=[str(file) for file in settings or ()],
            exit_on_error=False,
        )

    def add_config(self) -> None:
        """Add `--config` and `--print_config`."""
        self.parser.add_argument(
            "-c", "--config", action="config", help="Path to a configuration file in json or yaml format."
        )

    def add(self, name: str, kind: Any, default: Any, description: str) -> None:
        """Add one option."""
        switch: dict[str, Any] = {"nargs": "?", "const": True} if kind is bool else {}
        self.parser.add_argument(f"--{name}", type=kind, default=default, help=description, **switch)
        self.types[name] = kind

    def add_class(self, name: str, source: type) -> None:
        """Add the parameters of a class, as options that begin with `name`."""
        self.parser.add_class_arguments(source, name, fail_untyped=False, sub_configs=True)
        self._note_types(source, f"{name}.")

    def add_trainer(self, defaults: dict[str, Any]) -> None:
        """Add the parameters of Lightning's Trainer."""
        self.parser.add_function_arguments(
            _trainer_signature(), "trainer", fail_untyped=False, sub_configs=True
        )
        self.parser.set_defaults(RECIPE | defaults)
        self._note_types(Trainer, "trainer.")

    def add_function(self, function: Callable[..., None]) -> None:
        """Add the parameters of a function that is a subcommand."""
        self.parser.add_function_arguments(function, as_group=False)
        self._note_types(function, "")

    def _note_types(self, source: Any, prefix: str) -> None:
        function = vars(source)["__init__"] if isinstance(source, type) else source
        for name, kind in get_type_hints(function).items():
            self.types[f"{prefix}{name}"] = kind
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                self._note_types(kind, f"{prefix}{name}.")

    def parse(self, args: list[str]) -> Namespace:
        """Parse a command line.

        Raises:
            FlowersError: it has a mistake; the sentence names the option.
            SystemExit: it asks for help or for the configuration, which has been printed.
        """
        try:
            settings = self.parser.parse_args(args)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            files, self.parser.default_config_files = self.parser.default_config_files, []
            for file in files:
                explain_mistake(self.parser, self.types, self.command, ["--config", str(file)], error)
            said = explain_mistake(self.parser, self.types, self.command, args, error)
            raise FlowersError(f"{said} (see '{PROGRAM} {self.command} --help')") from error
        if is_address(root := str(settings.get("data.root"))):
            check_address(root)
        for name, path in _paths(settings):
            settings[name] = expand_home(path if os.path.exists(path) else unescape_bytes(path))
        return settings

    def defaults(self) -> str:
        """Write the settings that hold without a command line as YAML."""
        return self.dump(self.parser.get_defaults())

    def dump(self, settings: Namespace) -> str:
        """Write settings as YAML, with absolute paths: a run may be resumed from another working folder."""
        absolute = settings.clone()
        for name, value in settings.items():
            if isinstance(value, str):
                absolute[name] = yaml_text(value)
        for name, path in _paths(settings):
            absolute[name] = yaml_text(expanded(path))
        return str(self.parser.dump(absolute, skip_unset=False))


def run_function(function: Callable[..., None], args: list[str]) -> None:
    """Run a function that is a subcommand, by a command line."""
    options = Options(function.__name__)
    options.add_function(function)
    function(**options.parser.instantiate(options.parse(args)))


def _paths(settings: Namespace) -> list[tuple[str, str]]:
    """Return the settings that are paths."""
    values = [(name, settings.get(name)) for name in PATHS]
    values = [(name, value) for name, value in values if name != "data.root" or not is_address(str(value))]
    return [(name, value) for name, value in values if isinstance(value, str) and value not in NAMES]


def yaml_text(path: str) -> str:
    """Return a path with bytes that are not UTF-8 as escapes, for YAML; `Options.parse` undoes them."""
    return escape_bytes(path) if any("\udc80" <= letter <= "\udcff" for letter in path) else path


HELP = {"-h", "--help"}


def given(option: str, args: list[str]) -> str | None:
    """Return what a command line gives for an option, before it is parsed; None for nothing or null."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument(option, nargs="?", dest="value")
    value = first.parse_known_args(args)[0].value
    return None if value in (None, "", "null") else expand_home(str(value))


def asks_for_help(args: list[str]) -> bool:
    """Whether a command line asks for help, which needs no checkpoint."""
    return bool(HELP & set(args))


def _int_first(hint: Any) -> Any:
    """Put int before float in a union: `1` is one batch, `1.0` is all of them. `typing` may exchange them,
    since it caches unions of equal members."""
    members = get_args(hint)
    if not {int, float} <= set(members):
        return hint
    return reduce(or_, sorted(members, key=lambda member: member is float))


def _trainer_signature() -> Callable[..., None]:
    """Return a function with the Trainer's parameters, and its docstring without Sphinx's roles and defaults,
    some of which are not ours."""

    def trainer(**settings: Any) -> None: ...

    signature = inspect.signature(Trainer.__init__)
    hints = {name: _int_first(hint) for name, hint in get_type_hints(Trainer.__init__).items()}
    parameters = [
        one.replace(annotation=hints.get(name, one.annotation))
        for name, one in signature.parameters.items()
        if name != "self"
    ]
    text = inspect.cleandoc(Trainer.__init__.__doc__ or "").partition("\n")[2]
    text = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", text)
    text = re.sub(r"\s*Default: ``[^`]*``\.?", "", text)
    trainer.__doc__ = f"Lightning's Trainer.\n{text}"
    trainer.__annotations__ = {name: hint for name, hint in hints.items() if name != "return"}
    trainer.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return trainer
