"""A TOML file as tables that say exactly what is wrong: file, key, what it got and what it wanted."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from nvmeof.errors import ConfigError, UsageError

T = TypeVar("T")


class Table:
    """One table of the file; every getter raises ConfigError with the key's path."""

    def __init__(self, file: Path, place: str, content: dict[str, Any]) -> None:
        self.file = file
        self.place = place
        self._content = content

    def only(self, *known: str) -> None:
        """Refuse keys that nobody reads."""
        for key in self._content:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"wanted one of {', '.join(known)}"
                raise self.error(key, f"unknown key; {hint}")

    def error(self, key: str, message: str) -> ConfigError:
        return ConfigError(f"{self.where(key)}: {message}")

    def where(self, key: str = "") -> str:
        return f"{self.file}: {'.'.join(filter(None, (self.place, key)))}"

    def has(self, key: str) -> bool:
        return key in self._content

    def get(
        self, key: str, kind: type | tuple[type, ...], wanted: str, parse: Callable[[Any], T], default: T
    ) -> T:  # fmt: skip
        """The value of ``key`` as ``parse`` makes it, which may raise UsageError; the default if there is none."""
        if not self.has(key):
            return default
        got = self._content[key]
        if not isinstance(got, kind) or (isinstance(got, bool) and kind is not bool):
            raise self.error(key, f"got {quoted(got)}, wanted {wanted}")
        try:
            return parse(got)
        except UsageError as error:
            raise self.error(key, str(error)) from error

    def text(self, key: str, parse: Callable[[str], T], default: T) -> T:
        return self.get(key, str, "a string", parse, default)

    def path(self, key: str, wanted: str = "a file name") -> Path:
        """Relative to the file; the key must be there."""
        if not self.has(key):
            raise self.error(key, f"is missing, wanted {wanted}")
        name = self.text(key, str, "")
        if not name or "\0" in name:
            raise self.error(key, f"got {quoted(name)}, wanted {wanted}")
        return self.file.parent / name

    def flag(self, key: str) -> bool:
        return self.get(key, bool, "true or false", bool, False)

    def number(self, key: str, low: int, high: int) -> int | None:
        def parse(got: int) -> int:
            if not low <= got <= high:
                raise UsageError(f"got {got}, wanted {low} to {high}")
            return got

        return self.get(key, int, "a whole number", parse, None)

    def texts(self, key: str, parse: Callable[[str], str]) -> tuple[str, ...] | None:
        if not self.has(key):
            return None
        found = self._content[key]
        if not isinstance(found, list) or not found:
            raise self.error(key, f"got {quoted(found)}, wanted a list of strings that is not empty")
        items = Table(self.file, self.place, {f"{key}[{index}]": item for index, item in enumerate(found)})
        return tuple(items.text(each, parse, "") for each in items._content)

    def tables(self, key: str) -> list[Table]:
        """The tables under ``[[key]]``."""
        found = self._content.get(key, [])
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise self.error(key, f"got {quoted(found)}, wanted tables, each under [[{self._full(key)}]]")
        return [Table(self.file, f"{self._full(key)}[{index}]", each) for index, each in enumerate(found)]

    def _full(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key


def refuse_twice(items: Iterable[tuple[str, str]]) -> None:
    """(where, value) pairs whose values must differ."""
    seen: dict[str, str] = {}
    for where, value in items:
        if value in seen:
            other = seen[value].partition(": ")[2]
            raise ConfigError(f"{where}: got {quoted(value)}, which is {other} already")
        seen[value] = where


def quoted(value: object) -> str:
    """A value as TOML writes it, near enough."""
    return json.dumps(value, ensure_ascii=False, default=str)
