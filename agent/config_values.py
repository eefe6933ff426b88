"""What values of options are like: paths, files that hold secrets, sections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo

CREDENTIAL = "credential:"


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("needs an absolute path without '..'")
    return path


def _credential(value: object, info: ValidationInfo) -> object:
    """`credential:NAME` -> the file that systemd keeps for this service. The environment comes in as validation context."""
    if not isinstance(value, str) or not value.startswith(CREDENTIAL):
        return value
    name = value.removeprefix(CREDENTIAL)
    environment = (info.context or {}).get("environment", os.environ)
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError(
            "names a systemd credential, but $CREDENTIALS_DIRECTORY is not set: is LoadCredential= in the unit?"
        )
    if not name or "/" in name or name in (".", ".."):
        raise ValueError("needs a plain credential name after 'credential:'")
    return str(Path(directory) / name)


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
SecretFile = Annotated[Path, BeforeValidator(_credential), AfterValidator(_absolute)]


class Section(BaseModel):
    """Strict: an option that does not exist is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False)
