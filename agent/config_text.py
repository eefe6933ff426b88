"""The configuration as TOML text: the commented sample of every default, and what is in force with its source."""

from __future__ import annotations

import json
import textwrap
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from agent.config import Config
from agent.config_load import PREFIX, Loaded, section_model

_WIDTH = 100
_UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_HEAD = f"""\
storage-agent: every option, with its default.

Options stand here commented out; set what should differ. Files storage-agent.d/*.toml beside this one are read after it, in
the order of their names, and then the environment, as {PREFIX}SECTION__KEY. A later value replaces an earlier one; tables
are merged. Unknown options are errors: `storage-agent check-config` finds them, `storage-agent show-config` prints what is in
force and where it comes from.

Sizes are bytes or text with a unit ("48MiB"), durations are seconds. No option takes a secret itself: files are named by
their path, or as "credential:NAME" for what systemd's LoadCredential= provides.
"""


def sample() -> str:
    """The sample file. Taking the `#` from every line that begins `#name =` gives a file of the defaults."""
    blocks = [_comment(_HEAD)]
    for section in Config.model_fields:
        model = section_model(section)
        lines = [_comment(model.__doc__ or ""), f"[{section}]"]
        for key, option in model.model_fields.items():
            lines += ["", _comment(option.description or ""), *_fields(option), *_default(key, option)]
        blocks.append("\n".join(lines))
    return "\n\n\n".join(blocks) + "\n"


def effective(loaded: Loaded) -> str:
    """Every option as it is in force; what was set somewhere says where."""
    blocks = []
    for section in Config.model_fields:
        lines = [f"[{section}]"]
        for key, value in getattr(loaded.config, section):
            source = loaded.sources.get(f"{section}.{key}")
            text = f"# {key} is not set" if value is None else f"{key} = {toml_value(value)}"
            lines.append(f"{text}  # {source}" if source else text)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _fields(option: FieldInfo) -> list[str]:
    """What the entries of a list of tables are made of."""
    model = next((part for part in typing.get_args(option.annotation) if _is_model(part)), None)
    if model is None:
        return []
    return [_comment(f"- {name}{_preset(field)}: {field.description}") for name, field in model.model_fields.items()]


def _is_model(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def _preset(field: FieldInfo) -> str:
    return "" if field.is_required() or field.default is None else f" = {toml_value(field.default)}"


def _default(key: str, option: FieldInfo) -> list[str]:
    if option.default is not None:
        return [f"#{key} = {toml_value(option.default)}", *_examples(key, option)]
    return ["# Not set by default.", *_examples(key, option)]


def _examples(key: str, option: FieldInfo) -> list[str]:
    return [f"# Example: {key} = {toml_value(example)}" for example in option.examples or ()]


def _comment(text: str) -> str:
    paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += ["", *textwrap.wrap(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False)]
    return "\n".join(f"# {line}".rstrip() for line in lines[1:])


def toml_value(value: Any) -> str:
    """One value in TOML."""
    match value:
        case bool():
            return str(value).lower()
        case ByteSize():
            return _size(value)
        case int() | float():
            return repr(value)
        case Enum():
            return _string(value.value)
        case BaseModel():
            return toml_value({name: item for name, item in value if item is not None})
        case Mapping():
            entries = [f"{_string(str(name))} = {toml_value(item)}" for name, item in value.items()]
            return "{ " + ", ".join(entries) + " }" if entries else "{}"
        case list() | tuple():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
        case _:
            return _string(str(value))


def _string(text: str) -> str:
    """A basic string: JSON's notation, apart from DEL, which TOML wants escaped, and from \\u pairs, which it does not know."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _size(value: int) -> str:
    """The largest unit that needs no fraction; a string only where there is a unit."""
    for unit, factor in _UNITS:
        if value and value % factor == 0:
            return _string(f"{value // factor}{unit}")
    return str(int(value))
