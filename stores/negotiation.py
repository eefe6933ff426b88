"""What a store offers against what somebody accepts: a pure comparison, and its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from stores.contract import Kind
from stores.errors import RequirementNotMet


class Via(StrEnum):
    """How a presentation comes about."""

    NATIVE = "native"
    BRIDGE = "bridge"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one accepted kind was chosen or passed over."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Negotiation:
    """The outcome. `chosen` and `via` are None when nothing fits; `reasons` has one line for each accepted kind."""

    store_id: str
    accepted: tuple[Kind, ...]
    offered: frozenset[Kind]
    chosen: Kind | None
    via: Via | None
    reasons: tuple[Reason, ...]

    @property
    def needs_cache(self) -> bool:
        """Whether a local copy is the one thing that would do."""
        return self.chosen is None and Kind.LOCAL_PATH in self.accepted

    def refusal(self) -> RequirementNotMet:
        """The error for a negotiation that chose nothing."""
        accepted = [kind.value for kind in self.accepted]
        offered = sorted(kind.value for kind in self.offered)
        advice = (
            "a cache would have to make a local file of the object, and none is configured"
            if self.needs_cache
            else "use a store that offers one of these"
        )
        return RequirementNotMet(
            f"{_one_of(accepted)} is needed, and store {self.store_id} offers {_all_of(offered)}: {advice}",
            accepted=accepted,
            offered=offered,
            store=self.store_id,
        )


def negotiate(store_id: str, offered: frozenset[Kind], accepted: Sequence[Kind], *, ranges: bool) -> Negotiation:
    """The first of `accepted` that is `offered`; else the bridge, if `NbdExport` is accepted and a `RangeReader` is offered.

    `ranges`: whether this object can be read at random (`ObjectInfo.ranges`). For writing, `offered` is what the store
    can be written through, and `ranges` is False: the bridge is read-only.
    """
    bridged = ranges and Kind.RANGE_READER in offered
    chosen: Kind | None = next((kind for kind in accepted if kind in offered), None)
    via: Via | None = Via.NATIVE if chosen else None
    if chosen is None and Kind.NBD_EXPORT in accepted and bridged:
        chosen, via = Kind.NBD_EXPORT, Via.BRIDGE
    reasons = tuple(Reason(kind, _reason(kind, offered, chosen, via, bridged)) for kind in accepted)
    return Negotiation(store_id, tuple(accepted), offered, chosen, via, reasons)


def _reason(kind: Kind, offered: frozenset[Kind], chosen: Kind | None, via: Via | None, bridged: bool) -> str:
    if kind is chosen:
        return (
            "chosen: the store offers it" if via is Via.NATIVE else "chosen: the bridge makes it of the store's ranges"
        )
    if kind in offered:
        return f"offered as well, but {chosen} is preferred"
    if kind is Kind.NBD_EXPORT:
        if bridged:
            return f"the bridge could make it of the store's ranges, but {chosen} is offered natively"
        return "not offered, and without ranges the bridge cannot make it"
    if kind is Kind.LOCAL_PATH:
        return "not offered; only a cache could make it" + ("" if chosen else ", and none is configured")
    return "not offered"


def _one_of(kinds: Sequence[str]) -> str:
    return " or ".join(kinds) or "nothing"


def _all_of(kinds: Sequence[str]) -> str:
    return ", ".join(kinds) or "nothing"
