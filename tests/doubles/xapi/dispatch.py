"""From the name of a call to what does it: the classes' own calls, the getters and setters that all classes have, and the
`Async.` twins."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from tests.doubles.xapi.calls_disks import VdiCalls
from tests.doubles.xapi.calls_pool import EventCalls, HostCalls, NetworkCalls, SessionCalls, TaskCalls
from tests.doubles.xapi.calls_storage import PbdCalls, SrCalls, VbdCalls, VmCalls
from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.nbd import NbdServers
from tests.doubles.xapi.objects import Objects
from tests.doubles.xapi.world import Caller, World

Method = Callable[..., Coroutine[Any, Any, Any]]

_LOGIN = "session.login_with_password"
_NO_TWIN_CLASSES = {"task", "event", "session"}
_NO_TWIN = {"VDI.get_nbd_info"}
_UNDERSCORED = {"from": "from_"}


class Dispatcher:
    """`call` is what a request to a host comes to, whichever way it was written."""

    def __init__(self, world: World, nbd: NbdServers) -> None:
        self._world = world
        self._objects = Objects(world.db, replacing="duplicates" in world.settings.lies)
        self._own: dict[str, object] = {
            "VDI": VdiCalls(world, nbd),
            "SR": SrCalls(world),
            "PBD": PbdCalls(world),
            "VBD": VbdCalls(world),
            "VM": VmCalls(world),
            "session": SessionCalls(world),
            "task": TaskCalls(world),
            "event": EventCalls(world),
            "host": HostCalls(world),
            "network": NetworkCalls(world),
        }

    async def call(self, host: int, method: str, params: list[Any], *, local: bool) -> Any:
        """`local`: over dom0's socket, where a member passes calls on to the coordinator."""
        self._world.calls[method] += 1
        if method == "system.listMethods":
            return self.methods()
        if method == _LOGIN:
            return self._login(host, params, local=local)
        if not params:
            raise Failure("MESSAGE_PARAMETER_COUNT_MISMATCH", method, "1", "0")
        session = str(params[0])
        self._world.sessions.use(session)
        name, is_async = method.removeprefix("Async."), method.startswith("Async.")
        found = self._find(name)
        if found is None or (is_async and not self._has_twin(name)):
            raise Failure("MESSAGE_METHOD_UNKNOWN", method)
        _check_count(method, found, len(params))
        caller = Caller(host, session, local, self._world.dummy_task(name))
        if not is_async:
            return await found(caller, *params[1:])
        task = self._world.tasks.create(f"Async.{name}", host=self._world.hosts[host])
        work = self._disturbed(host, name, task, found(dataclasses.replace(caller, task=task), *params[1:]))
        self._world.tasks.run(task, work)
        return task

    def methods(self) -> list[str]:
        own = [f"{name}.{method}" for name, calls in self._own.items() for method in _public(calls)]
        names = sorted({*own, *self._objects.methods(), _LOGIN, "event.from"} - {"event.from_"})
        return [*names, *(f"Async.{name}" for name in names if self._has_twin(name))]

    def _login(self, host: int, params: list[Any], *, local: bool) -> str:
        if not 2 <= len(params) <= 4:
            raise Failure("MESSAGE_PARAMETER_COUNT_MISMATCH", _LOGIN, "4", str(len(params)))
        world = self._world
        if host != world.coordinator and not local:
            raise Failure("HOST_IS_SLAVE", world.address(world.coordinator))
        user, password, originator = str(params[0]), str(params[1]), str(params[3]) if len(params) == 4 else ""
        return world.sessions.login(user, password, originator, world.hosts[world.coordinator])

    def _find(self, name: str) -> Method | None:
        kind, _, method = name.partition(".")
        calls = self._own.get(kind)
        attribute = _UNDERSCORED.get(method, method)
        if calls is not None and method and not method.startswith("_"):
            found: Method | None = getattr(calls, attribute, None)
            if found is not None:
                return found
        return self._objects.find(kind, method)

    def _has_twin(self, name: str) -> bool:
        kind, _, method = name.partition(".")
        calls = self._own.get(kind)
        is_own = calls is not None and hasattr(calls, method)
        return is_own and kind not in _NO_TWIN_CLASSES and name not in _NO_TWIN

    async def _disturbed(self, host: int, name: str, task: str, work: Coroutine[Any, Any, Any]) -> Any:
        """What faults do to a call that runs in a task."""
        try:
            fault = self._world.faults.hit("async", "start", host, name)
            if fault is None:
                return await work
            if fault.action == "delay":
                await asyncio.sleep(fault.seconds)
                return await work
            if fault.action == "lose-task":
                self._world.tasks.lose(task)
                return await work
            if fault.action == "hang":
                await asyncio.Event().wait()
            if fault.action == "cancel":
                raise Failure("TASK_CANCELLED", task)
            raise Failure(*fault.error)
        finally:
            work.close()


def _public(calls: object) -> list[str]:
    return [name for name, _ in inspect.getmembers(calls, inspect.iscoroutinefunction) if not name.startswith("_")]


def _check_count(method: str, found: Method, given: int) -> None:
    """`given` counts the session, which our methods take as their caller."""
    kinds = inspect.signature(found).parameters.values()
    needed = sum(kind.default is kind.empty and kind.kind is not kind.VAR_POSITIONAL for kind in kinds)
    open_ended = any(kind.kind is kind.VAR_POSITIONAL for kind in kinds)
    if given < needed or (given > len(kinds) and not open_ended):
        raise Failure("MESSAGE_PARAMETER_COUNT_MISMATCH", method, str(len(kinds)), str(given))
