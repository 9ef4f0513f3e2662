"""Command lines: flags generated from the config's fields, recipes, `--config`, `--set`; how programs end on errors."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tas_fast.config import Config
from tas_fast.errors import UsageError, UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UsageError`s and name the nearest known flag."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        values, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            nearest = get_close_matches(word.split("=")[0], flags, n=2)
            raise UsageError(
                f"unknown option {word}; " + (f"did you mean {' or '.join(nearest)}?" if nearest else "see --help")
            )
        return values


def config_parser(prog: str, description: str) -> Parser:
    """Return a parser with the flags of all config fields, and the flags that choose and complete a config."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"published settings to start from: {', '.join(recipe_names())} (default: quick)",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of settings; flags win over it, it wins over the recipe"
    )
    parser.add_argument(
        "--set", metavar="SECTION.FIELD=VALUE", action="append", default=[], help="any setting, e.g. method.tau_max=10"
    )
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder with its own settings")
    parser.add_argument("--json", action="store_true", help="print the report as the last line")
    for section in dataclasses.fields(Config):
        kind = section.default_factory  # type: ignore[misc]
        group = parser.add_argument_group(str(kind.__doc__).rstrip("."))
        hints = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):  # type: ignore[arg-type]
            if item.metadata["flags"]:
                _add_flag(group, section.name, item, hints[item.name])
    return parser


def _add_flag(group: Any, section: str, item: dataclasses.Field[Any], kind: Any) -> None:
    text, destination = item.metadata["help"].replace("%", "%%"), f"{section}.{item.name}"
    default = "" if item.default is None or "default:" in text else f" (default: {item.default})"
    if kind is bool:
        group.add_argument(
            *item.metadata["flags"], dest=destination, action=argparse.BooleanOptionalAction, help=text + default
        )
    else:
        name = "|".join(item.metadata["choices"]) if item.metadata["choices"] else item.name.upper()
        group.add_argument(*item.metadata["flags"], dest=destination, metavar=name, help=text + default)


def read_config(arguments: Any) -> Config:
    """Return the settings that recipe, config file, `--set` and flags add up to; the later win."""
    config = Config()
    if arguments.recipe:
        source = f"recipe {arguments.recipe}"
        config = config.updated(load_yaml(_recipe_text(arguments.recipe), source), source)
    if arguments.config:
        try:
            text = Path(arguments.config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read --config {arguments.config}: {error}") from None
        config = config.updated(load_yaml(text, arguments.config), arguments.config)
    for assignment in arguments.set:
        name, equals, value = assignment.partition("=")
        section, dot, key = name.partition(".")
        if not equals or not dot:
            raise UsageError(f"--set takes SECTION.FIELD=VALUE such as method.tau_max=10, got {assignment!r}")
        config = config.updated({section: {key: value}}, "--set")
    return config.updated(_given(arguments), "command line")


def given_settings(arguments: Any) -> list[str]:
    """Return what the command line sets: fields as section.field, and the flags that bring settings along."""
    fields = [f"{section}.{key}" for section, entries in _given(arguments).items() for key in entries]
    return fields + [f"--{name}" for name in ("recipe", "config", "set") if getattr(arguments, name)]


def _given(arguments: Any) -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = {}
    for destination, value in vars(arguments).items():
        section, dot, key = destination.partition(".")
        if dot and value is not None:
            values.setdefault(section, {})[key] = value
    return values


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("tas_fast.recipes").iterdir()
        if entry.name.endswith(".yaml")
    )


def _recipe_text(name: str) -> str:
    if name not in recipe_names():
        raise UsageError(f"unknown recipe {name!r}; known are {', '.join(recipe_names())}")
    return (resources.files("tas_fast.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def load_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the settings in `text`. Raises `UsageError` with `source` when they are not sections with fields."""
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{source} must hold sections with fields, got {type(values).__name__}")
    return values


def run_program(main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run `main` as a program: a `UserError` is one line and its exit code."""
    try:
        code = main(None)
    except UserError as error:
        print(f"tas_fast: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("tas_fast: stopped", file=sys.stderr)
        code = 130
    sys.exit(code)
