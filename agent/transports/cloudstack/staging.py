"""A desk to which some `ImageCache` stores are only names: looks at objects in S3 where a server wants them copied first."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import structlog
from pydantic import ValidationError

from agent import commands
from agent.commands import Failure, canonical
from agent.failures import tell
from agent.transports.cloudstack.commands_desk import Commands, Desk
from agent.transports.cloudstack.commands_route import Route
from agent.transports.cloudstack.commands_staging import (
    Instead,
    Keep,
    Meaning,
    Remember,
    Say,
    found,
    kept,
    kept_told,
    meaning_of,
    remembered,
    require_same,
)
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_storage import CopyCommand
from agent.transports.cloudstack.staging_file import Zone
from agent.transports.cloudstack.staging_paths import Staged
from stores.errors import StorageError
from stores.to import S3TO

_log = structlog.get_logger(__name__)

_FOLDER_LENGTH = 16


class StagingDesk(Desk):
    """What is about other stores goes its ordinary way."""

    def __init__(
        self, dispatcher: Commands, zone: Zone, *, new_id: Callable[[], str] = lambda: uuid.uuid4().hex
    ) -> None:
        super().__init__(dispatcher, new_id=new_id)
        self._zone = zone
        self._make_id = new_id
        self._folders: dict[bytes, str] = {}  # of copies out of pools that are under way, by what is asked

    async def serve(self, route: Route, command: WireCommand, *, within_s: float) -> WireAnswer:
        try:
            meaning = meaning_of(command, self._zone)
            if meaning is not None:
                return await self._follow(meaning, route, within_s)
        except _Failed as failed:
            return route.failed(command, failed.failure)
        except (StorageError, ValidationError) as error:
            return route.failed(command, tell(error).failure)
        return await super().serve(route, command, within_s=within_s)

    async def _follow(self, meaning: Meaning, route: Route, within_s: float) -> WireAnswer:
        match meaning:
            case Say(answer):
                return answer
            case Remember(copy, store, key):
                staged = await self._look(store, key, within_s)
                _log.info("staged by name", ref=key, size=staged.size)
                return remembered(copy, staged, self._zone)
            case Instead(other, unless):
                if unless is not None:
                    store, staged = unless
                    require_same(staged, await self._look(store, staged.key, within_s))
                return await super().serve(route, other, within_s=within_s)
            case Keep(copy):
                return await self._keep(copy, route, within_s)

    async def _look(self, store: S3TO, key: str, within_s: float) -> Staged:
        asked = commands.ListDataStoreObjects(store=store, path=key, pageSize=1, recursive=True)
        answer = await self.run(asked, within_s=within_s)
        if answer.error is not None:
            raise _Failed(answer.error)
        return found(answer, store, key, self._zone)

    async def _keep(self, copy: CopyCommand, route: Route, within_s: float) -> WireAnswer:
        """Into a folder of its own, since a volume that is copied again has other content. The same copy, asked for while it is
        under way, is that one."""
        asked = canonical(route.asks(copy))
        folder = self._folders.setdefault(asked, self._make_id()[:_FOLDER_LENGTH])
        try:
            answer = await super().serve(route, kept(copy, folder, self._zone), within_s=within_s)
        finally:
            self._folders.pop(asked, None)
        return kept_told(answer, self._zone)


class _Failed(Exception):
    """A command of the agent's failed, on the way to what was asked."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
