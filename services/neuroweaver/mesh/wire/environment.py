"""What the environment says: each variable declared and read once, and refused by name if it cannot be used.

A settings class is a dataclass whose fields are made by `variable`; `read` gives the settings in force.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

_KEY: Final = "variable"
_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off"})

# A database's URL holds its password.
_SECRET: Final = re.compile(r"(_KEY|TOKEN|_SECRET|PASSWORD|PASSWD|_CREDENTIALS)$|^NEUROWEAVER_DATABASE_URL$")

S = TypeVar("S")


class SettingsError(Exception):
    """A variable holds what cannot be used. The message names the variable and what it may hold."""


@dataclass(frozen=True)
class Reading:
    """What a default may depend on: the environment, and the fields declared above, as `reading["home"]`."""

    environ: Mapping[str, str]
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


@dataclass(frozen=True)
class Variable:
    """How a field is read. name: `{SERVICE}` in it stands for the field `service`, in capitals.

    parse: raises ValueError saying what the text is not. default: a value, or a function of a `Reading`.
    shown_default: for people, where the default itself says little. is_secret: its value is never repeated.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    shown_default: str = ""
    is_secret: bool = False

    def read(self, environ: Mapping[str, str], **before: Any) -> Any:
        """before: the fields that its name and its default depend on. Raises SettingsError."""
        name = self.name.format(SERVICE=str(before.get("service", "")).upper())
        text = environ.get(name, "").strip()
        if not text:
            return self.default(Reading(environ, before)) if callable(self.default) else self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise SettingsError(f"{name if self.is_secret else f'{name}={text}'} is not {error}") from error


def variable(
    name: str,
    parse: Callable[[str], Any],
    default: Any,
    *,
    help: str,  # noqa: A002  # as argparse calls it
    shown_default: str = "",
    is_secret: bool = False,
) -> Any:
    """A dataclass field that `read` takes from the environment; see `Variable`.

    With a function as its default, the constructor asks for the field.
    """
    return declared(Variable(name, parse, default, help, shown_default, is_secret))


def declared(by: Variable) -> Any:
    """As `variable`, for one that several classes read."""
    return field(default=MISSING if callable(by.default) else by.default, metadata={_KEY: by})


def variables(kind: type) -> Mapping[str, Variable]:
    """The variables of a settings class, by its fields."""
    return {each.name: each.metadata[_KEY] for each in fields(kind) if _KEY in each.metadata}


def read(kind: type[S], environ: Mapping[str, str] | None = None, **given: Any) -> S:
    """The settings in force. given: fields that are not read.

    Raises SettingsError for the first bad variable.
    """
    environ = os.environ if environ is None else environ
    values = dict(given)
    for name, each in variables(kind).items():
        if name not in values:
            values[name] = each.read(environ, **values)
    return kind(**values)


def changed(settings: object) -> dict[str, str]:
    """The variables that give these settings to another process: those whose fields are not the default."""
    return {
        each.name: str(value)
        for name, each in variables(type(settings)).items()
        if (value := getattr(settings, name)) != each.default
    }


# Parsers: each raises ValueError that ends the sentence "NAME=text is not …".


def text(value: str) -> str:
    return value


def switch(value: str) -> bool:
    if value.lower() not in _YES | _NO:
        raise ValueError("true or false")
    return value.lower() in _YES


def choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return value

    return parse


def matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(what)
        return value

    return parse


def whole(least: int, what: str, *, most: int | None = None) -> Callable[[str], int]:
    """what: "a number of workers", to which the bounds are added."""
    bounds = f"{what}, {least} or above" if most is None else f"{what} between {least} and {most}"

    def parse(value: str) -> int:
        if not (value.isdecimal() and least <= int(value) and (most is None or int(value) <= most)):
            raise ValueError(bounds)
        return int(value)

    return parse


port_number: Final = whole(0, "a port", most=65535)


def number(least: float, what: str, *, is_least_allowed: bool = True) -> Callable[[str], float]:
    bounds = f"{what}, {least:g} or above" if is_least_allowed else f"{what} above {least:g}"

    def parse(value: str) -> float:
        try:
            parsed = float(value)
        except ValueError:
            raise ValueError(bounds) from None
        if not (math.isfinite(parsed) and (parsed >= least if is_least_allowed else parsed > least)):
            raise ValueError(bounds)
        return parsed

    return parse


seconds: Final = number(0, "a number of seconds")
seconds_above_0: Final = number(0, "a number of seconds", is_least_allowed=False)


def absolute_path(value: str) -> Path:
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError("a path: there is no such user's home") from None
    if not path.is_absolute():
        raise ValueError("an absolute path")
    return path


def folder(value: str) -> Path:
    """An absolute path of a folder, or of what will be one."""
    path = absolute_path(value)
    if path.exists() and not path.is_dir():
        raise ValueError("a folder but a file")
    return path


def url(*schemes: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if scheme_of(value) not in schemes:
            raise ValueError(f"a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value

    return parse


def address(value: str) -> str:
    host, colon, tail = value.rpartition(":")
    if not (host and colon and tail.isdecimal() and 0 < int(tail) < 65536):
        raise ValueError("host:port")
    return value


def without_secrets(environ: Mapping[str, str], *kept: str) -> dict[str, str]:
    """An environment for a process with a task of its own: no secrets but those that it needs."""
    return {name: value for name, value in environ.items() if name in kept or not _SECRET.search(name)}


def scheme_of(value: str) -> str:
    """Empty where the text is no URL."""
    try:
        return urlsplit(value).scheme
    except ValueError:
        return ""
