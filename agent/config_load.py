"""Where configuration comes from: the file, its drop-ins, the environment; what is wrong with it, and where that stands."""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent.config import Config
from stores.errors import Retry, StorageError

DEFAULT_FILE = Path("/etc/storage-agent/storage-agent.toml")
PREFIX = "STORAGE_AGENT__"


class ConfigError(StorageError):
    """The configuration cannot be used; the message has one line for each thing that is wrong, with its source."""

    retry = Retry.OPERATOR


@dataclass(frozen=True)
class Loaded:
    """A configuration, and for each `section.key` that was set, who set it."""

    config: Config
    sources: dict[str, str]
    files: tuple[Path, ...]


@dataclass
class _Gathered:
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def take(self, section: str, key: str, value: Any, source: str) -> None:
        """Tables merge, so that a drop-in can add an entry; anything else replaces what stood there."""
        known = Config.model_fields.get(section)
        if known is None:
            self.problems.append(f"{source}: no section [{section}]{_nearest(section, Config.model_fields)}")
            return
        options = section_model(section).model_fields
        if key not in options:
            self.problems.append(f"{source}: no option {key} in [{section}]{_nearest(key, options)}")
            return
        present = self.values.setdefault(section, {})
        if isinstance(value, dict) and isinstance(present.get(key), dict):
            value = present[key] | value
        present[key] = value
        self.sources[f"{section}.{key}"] = source


def section_model(section: str) -> type[BaseModel]:
    """The model of a section, by its name in the file."""
    annotation = Config.model_fields[section].annotation
    return typing.cast(type[BaseModel], annotation)


def drop_in_directory(file: Path) -> Path:
    """`storage-agent.toml` -> `storage-agent.d` beside it."""
    return file.with_suffix(".d")


def load(file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Loaded:
    """Read everything and check it. `file` None: the default file, which may be missing; a file that is named must exist.

    Raises `ConfigError` with every problem at once.
    """
    gathered = _Gathered()
    files = _files(file or DEFAULT_FILE, required=file is not None)
    for path in files:
        _read_file(path, gathered)
    _read_environment(environment, gathered)
    if gathered.problems:
        raise ConfigError("\n".join(gathered.problems))
    try:
        config = Config.model_validate(gathered.values, context={"environment": environment})
    except ValidationError as error:
        lines = [_line(problem, gathered.sources) for problem in error.errors(include_url=False, include_input=False)]
        raise ConfigError("\n".join(lines)) from None
    return Loaded(config, gathered.sources, tuple(files))


def _files(file: Path, *, required: bool) -> list[Path]:
    if required and not file.is_file():
        raise ConfigError(f"{file}: no such configuration file", file=str(file))
    return [file] * file.is_file() + sorted(drop_in_directory(file).glob("*.toml"))


def _read_file(path: Path, gathered: _Gathered) -> None:
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        gathered.problems.append(f"{path}: cannot be read: {error.strerror}")
        return
    except ValueError as error:  # bad UTF-8 and bad TOML alike
        gathered.problems.append(f"{path}: is not TOML: {error}")
        return
    for section, table in tables.items():
        if not isinstance(table, dict):
            gathered.problems.append(f"{path}: {section} stands outside of any [section]")
            continue
        for key, value in table.items():
            gathered.take(section, key, value, str(path))


def _read_environment(environment: Mapping[str, str], gathered: _Gathered) -> None:
    """`STORAGE_AGENT__SECTION__KEY=value`. Lists and tables are written as in TOML, everything else as plain text."""
    for name in sorted(environment):
        if not name.startswith(PREFIX):
            continue
        section, separator, key = name.removeprefix(PREFIX).lower().partition("__")
        if not separator:
            gathered.problems.append(f"${name}: needs the form {PREFIX}SECTION__KEY")
            continue
        text = environment[name]
        try:
            value = tomllib.loads(f"value = {text}")["value"] if text[:1] in ("[", "{") else text
        except ValueError as error:
            gathered.problems.append(f"${name}: is not a TOML value: {error}")
            continue
        gathered.take(section, key, value, f"${name}")


def _nearest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else f" (there are: {', '.join(known)})"


def _line(problem: ErrorDetails, sources: Mapping[str, str]) -> str:
    """One pydantic error as `SOURCE: section.key[...]: what is wrong`; a rule over several sections has no key."""
    place = [str(part) for part in problem["loc"]]
    source = sources.get(".".join(place[:2]))
    if source is None:  # a rule over a whole section, or over several
        source = ", ".join(
            sorted({who for name, who in sources.items() if name.split(".")[:1] == place[:1] or not place})
        )
    message = problem["msg"].removeprefix("Value error, ")
    return ": ".join(part for part in (source, ".".join(place), message) if part)
