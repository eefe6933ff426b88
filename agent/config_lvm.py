"""The section of the configuration about volume groups of LVM."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from agent.config_values import Section
from stores.settings import Wipe


class LvmSection(Section):
    """Volume groups of LVM as pools, of type LVM, or CLVM where hosts share them."""

    groups: tuple[str, ...] = Field(
        (), description="Allow-list: volume groups that pools may be.", examples=[["cloud", "shared"]]
    )
    thin_pools: dict[str, str] = Field(
        {},
        description="By the group: the thin pool that its images are made in. Elsewhere images are thick.",
        examples=[{"cloud": "images"}],
    )
    wipe: Wipe = Field(
        Wipe.NONE,
        description="What becomes of the content of a thick image that is deleted: `none`, `zero` (overwritten) or `discard`"
        " (given back to the device). New images never show what was there before.",
    )

    @model_validator(mode="after")
    def _known_groups(self) -> Self:
        if strange := sorted(set(self.thin_pools) - set(self.groups)):
            raise ValueError(f"thin_pools names {', '.join(strange)}, which lvm.groups does not: name it there as well")
        return self
