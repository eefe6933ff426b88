"""The calls of session, task, event, host and network."""

from __future__ import annotations

from typing import Any

from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.rpc import result_text
from tests.doubles.xapi.world import Caller, World

STATES = ("pending", "success", "failure", "cancelling", "cancelled")


class SessionCalls:
    """Logging in is the dispatcher's: it needs no session."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def logout(self, caller: Caller) -> str:
        self._world.sessions.drop(caller.session)
        return ""


class TaskCalls:
    def __init__(self, world: World) -> None:
        self._world = world
        self._db = world.db

    async def create(self, caller: Caller, label: str, description: str) -> str:
        return self._world.tasks.create(label, description, host=self._world.hosts[caller.host])

    async def destroy(self, caller: Caller, task: str) -> str:
        self._db.get("task", task)
        self._world.tasks.destroy(task)
        return ""

    async def cancel(self, caller: Caller, task: str) -> str:
        if "cancel" not in self._db.field("task", task, "allowed_operations"):
            raise Failure("OPERATION_NOT_ALLOWED", f"Cannot cancel task {task}")
        self._world.tasks.cancel(task)
        return ""

    async def set_status(self, caller: Caller, task: str, value: str) -> str:
        if value not in STATES:
            raise Failure("FIELD_TYPE_ERROR", "status")
        self._db.change("task", task, status=value)
        return ""

    async def set_progress(self, caller: Caller, task: str, value: float | str) -> str:
        self._db.change("task", task, progress=float(value))
        return ""

    async def set_result(self, caller: Caller, task: str, value: str) -> str:
        self._db.change("task", task, result=result_text(value))
        return ""

    async def set_error_info(self, caller: Caller, task: str, value: list[str]) -> str:
        self._db.change("task", task, error_info=value)
        return ""


class EventCalls:
    """`register`, `next` and `inject` of old are not there."""

    def __init__(self, world: World) -> None:
        self._world = world

    # `from` is a word of Python's: the dispatcher finds it by its other name.
    async def from_(self, caller: Caller, classes: list[str], token: str, timeout: float | str) -> dict[str, Any]:
        return await self._world.db.events_from(classes, token, float(timeout))

    async def get_current_id(self, caller: Caller) -> int:
        return self._world.db.generation


class HostCalls:
    def __init__(self, world: World) -> None:
        self._world = world

    async def get_servertime(self, caller: Caller, host: str) -> str:
        self._world.db.get("host", host)
        return self._world.clock.moment()

    async def enable(self, caller: Caller, host: str) -> str:
        self._world.db.change("host", host, enabled=True)
        return ""

    async def disable(self, caller: Caller, host: str) -> str:
        self._world.db.change("host", host, enabled=False)
        return ""


class NetworkCalls:
    def __init__(self, world: World) -> None:
        self._db = world.db

    async def add_purpose(self, caller: Caller, network: str, purpose: str) -> str:
        """NBD with TLS and without it exclude each other in the whole pool."""
        if purpose not in ("nbd", "insecure_nbd"):
            raise Failure("FIELD_TYPE_ERROR", "purpose")
        other = "insecure_nbd" if purpose == "nbd" else "nbd"
        if any(other in self._db.field("network", ref, "purpose") for ref in self._db.refs("network")):
            raise Failure("NETWORK_INCOMPATIBLE_PURPOSES", purpose, other)
        purposes = self._db.field("network", network, "purpose")
        self._db.change("network", network, purpose=sorted({*purposes, purpose}))
        return ""

    async def remove_purpose(self, caller: Caller, network: str, purpose: str) -> str:
        purposes = self._db.field("network", network, "purpose")
        self._db.change("network", network, purpose=[one for one in purposes if one != purpose])
        return ""
