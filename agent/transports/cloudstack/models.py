"""What every command and answer of CloudStack has in common, and how its Java class is called.

The models in `models_*` are named after Java classes and their fields after Java fields, since both are the wire format; a
field whose name begins with an underscore there has that name as its alias. They are read as gson reads: fields that are
not known are ignored, an absent one is null, zero or false, and a constant of an enumeration may be one that is not known
here, which is why those are plain strings. Sizes are bytes; `wait` is seconds.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

API = "com.cloud.agent.api"
API_STORAGE = f"{API}.storage"
STORAGE = "org.apache.cloudstack.storage.command"
DIRECT_DOWNLOAD = "org.apache.cloudstack.agent.directdownload"

CLASSES: dict[str, type[Envelope]] = {}
"""Every command and answer by the full name of its Java class."""


class WireObject(BaseModel):
    """Anything that is a JSON object on the wire."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, populate_by_name=True, hide_input_in_errors=True, coerce_numbers_to_str=True
    )


class Envelope(WireObject):
    """The fields of com.cloud.agent.api.Command, which answers have as well."""

    java: ClassVar[str]
    """The full name of the Java class: the one key of the object that carries this one."""

    contextMap: dict[str, str] = Field(default={})
    wait: int = 0
    bypassHostMaintenance: bool = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if "java" in vars(cls):
            CLASSES[cls.java] = cls


class WireAnswer(Envelope):
    """com.cloud.agent.api.Answer. `result` is always written: a peer reads an absent one as false."""

    java = f"{API}.Answer"
    result: bool = False
    details: str | None = None


class UnsupportedAnswer(WireAnswer):
    """What is answered to a command that is not known, or not in this role."""

    java = f"{API}.UnsupportedAnswer"


class WireCommand(Envelope):
    """A command. `answered_by` is the class of its answer, of successes and of failures."""

    answered_by: ClassVar[type[WireAnswer]] = WireAnswer
