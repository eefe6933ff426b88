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
    CACHE = "cache"


class CacheUse(StrEnum):
    """What a cache is for, where there is one."""

    NEEDED = "needed"  # for what nothing else can give
    PREFERRED = "prefer"  # for whatever it can give: the object will be wanted again


FROM_CACHE = frozenset({Kind.LOCAL_PATH, Kind.NBD_EXPORT, Kind.RANGE_READER, Kind.BYTE_STREAM})
"""What can be made of a file in a cache: the file itself, its bytes, and by the bridge an export of them."""


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


def negotiate(
    store_id: str,
    offered: frozenset[Kind],
    accepted: Sequence[Kind],
    *,
    ranges: bool,
    cache: CacheUse | None = None,
) -> Negotiation:
    """The first of `accepted` that is `offered`; else the bridge, if `NbdExport` is accepted and a `RangeReader` is offered;
    else a cache, if there is one and `LocalPath` is accepted. A preferred cache comes before all of these, for whatever can
    be made of its file.

    `ranges`: whether this object can be read at random (`ObjectInfo.ranges`). For writing, `offered` is what the store
    can be written through, and `ranges` is False: the bridge is read-only. `cache`: None where there is none.
    """
    chosen, via = _choice(offered, accepted, ranges and Kind.RANGE_READER in offered, cache)
    reasons = tuple(_Reasons(offered, chosen, via, ranges, cache).of(kind) for kind in accepted)
    return Negotiation(store_id, tuple(accepted), offered, chosen, via, reasons)


def _choice(
    offered: frozenset[Kind], accepted: Sequence[Kind], bridged: bool, cache: CacheUse | None
) -> tuple[Kind | None, Via | None]:
    if cache is CacheUse.PREFERRED:
        cached = next((kind for kind in accepted if kind in FROM_CACHE), None)
        if cached is not None:
            return cached, Via.CACHE
    native = next((kind for kind in accepted if kind in offered), None)
    if native is not None:
        return native, Via.NATIVE
    if bridged and Kind.NBD_EXPORT in accepted:
        return Kind.NBD_EXPORT, Via.BRIDGE
    if cache is not None and Kind.LOCAL_PATH in accepted:
        return Kind.LOCAL_PATH, Via.CACHE
    return None, None


@dataclass(frozen=True, slots=True)
class _Reasons:
    offered: frozenset[Kind]
    chosen: Kind | None
    via: Via | None
    ranges: bool
    cache: CacheUse | None

    def of(self, kind: Kind) -> Reason:
        return Reason(kind, self._why_chosen() if kind is self.chosen else self._why_not(kind))

    def _why_chosen(self) -> str:
        if self.via is Via.NATIVE:
            return "chosen: the store offers it"
        if self.via is Via.BRIDGE:
            return "chosen: the bridge makes it of the store's ranges"
        if self.cache is CacheUse.PREFERRED:
            return "chosen: the cache makes it, which is preferred for this object"
        return "chosen: the cache makes it, since nothing that is accepted is offered"

    def _why_not(self, kind: Kind) -> str:
        if self.via is Via.CACHE and self.cache is CacheUse.PREFERRED and kind in FROM_CACHE:
            return f"the cache could make it as well, but {self.chosen} is preferred"
        if kind in self.offered:
            return f"offered as well, but {self._preferred()}"
        if kind is Kind.NBD_EXPORT:
            if self.ranges and Kind.RANGE_READER in self.offered:
                return f"the bridge could make it of the store's ranges, but {self.chosen} is offered natively"
            return "not offered, and without ranges the bridge cannot make it"
        if kind is Kind.LOCAL_PATH and self.cache is None:
            return "not offered; only a cache could make it" + ("" if self.chosen else ", and none is configured")
        if kind is Kind.LOCAL_PATH:
            return f"not offered; the cache could make it, but {self.chosen} needs none"
        return "not offered"

    def _preferred(self) -> str:
        return f"{self.chosen} is preferred" + (" from the cache" if self.via is Via.CACHE else "")


def _one_of(kinds: Sequence[str]) -> str:
    return " or ".join(kinds) or "nothing"


def _all_of(kinds: Sequence[str]) -> str:
    return ", ".join(kinds) or "nothing"
