"""What `explain` takes, and what it says: the commands that negotiate between a store and a handler, run by nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agent import commands
from agent.execution import attaching
from hypervisors import verbs
from hypervisors.contract import HypervisorType
from hypervisors.operations import Explanation, Operations
from stores.to import TemplateObjectTO


class AttachIso(BaseModel):
    """What attaching an ISO would need of its store, whatever the guest."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    command: Literal["AttachIso"] = "AttachIso"
    data: TemplateObjectTO
    hypervisorType: HypervisorType | None = None  # the agent's own when absent


Explainable: TypeAlias = Annotated[commands.Copy | commands.Attach | AttachIso, Field(discriminator="command")]

EXPLAINABLE: TypeAdapter[Explainable] = TypeAdapter(Explainable)
"""Validates and describes what can be explained."""

EXPLANATION: TypeAdapter[Explanation] = TypeAdapter(Explanation)
"""Writes and describes the explanation."""

Explainer: TypeAlias = Callable[[Explainable], Explanation]
"""Contacts nothing and runs nothing."""


def explainer(operations: Operations, own: HypervisorType) -> Explainer:
    """Explanations by these operations, for the hypervisor `own` where the command names none."""

    def explain(asked: Explainable) -> Explanation:
        return operations.explain(asked.hypervisorType or own, _request(asked))

    return explain


def _request(asked: Explainable) -> verbs.Copy | verbs.AttachIso | verbs.AttachVolume:
    match asked:
        case commands.Copy():
            return verbs.Copy(asked.source, asked.destination, prefer_cache=asked.cache == "prefer")
        case commands.Attach():
            return attaching(asked)
        case AttachIso():
            return verbs.AttachIso(asked.data)
