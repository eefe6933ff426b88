"""`PowerShellPort` over PowerShell remoting (WinRM with TLS), on pypsrp in a bounded number of threads."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from hypervisors.hyperv import texts
from hypervisors.hyperv.endpoint import Endpoint
from hypervisors.hyperv.errors import HypervFailure, failure
from hypervisors.hyperv.powershell import PowerShellPort
from hypervisors.hyperv.shell import Lost, Shell
from hypervisors.passwords import current
from stores.errors import AccessDenied, StorageError, Unavailable
from stores.transfer.threads import Threads
from stores.uninterrupted import uninterrupted

_LONGEST_PAUSE_S = 10.0


class PsrpPort(PowerShellPort):
    """At most `limit` shells on the host, one for each thread that talks to it; hosts allow some thirty for one user.

    A shell is used again until something goes wrong in it. What was lost is tried again in a new one, after pauses from
    `pause_s` on, until the time of the call is up: `Unavailable` and the host's quotas are seen by the caller only then.
    Wrong credentials are not tried twice: accounts are locked for that. Where a host knows a shell of ours no more, a new
    one is opened with the password as it is now, and no other old one is tried.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        limit: int = 4,
        pause_s: float = 0.5,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        shell: Callable[[Endpoint], Shell] = Shell,
    ) -> None:
        self._endpoint = endpoint
        self._pause_s = pause_s
        self._sleep = sleep
        self._make_shell = shell
        self._threads = Threads("powershell", limit)
        self._turn = asyncio.Semaphore(limit)
        self._idle: list[Shell] = []

    async def run(self, script: str, argument: Mapping[str, Any], *, timeout_s: float = 120.0) -> Any:
        text, told = texts.text(script), json.dumps(dict(argument))
        lost: StorageError | None = None
        try:
            async with asyncio.timeout(timeout_s):
                for number in itertools.count():
                    try:
                        return _result(await self._once(text, told), script, self._endpoint)
                    except Lost as error:
                        if isinstance(error.error, AccessDenied):
                            if isinstance(lost, AccessDenied):
                                raise error.error from error
                            await self._abandon()
                        lost = error.error
                    await self._sleep(min(self._pause_s * 2**number, _LONGEST_PAUSE_S))
        except TimeoutError as error:
            raise lost or Unavailable(
                f"host {self._endpoint} did not end {script} within {timeout_s:g} s", host=str(self._endpoint)
            ) from error
        raise AssertionError("it goes on until there is a result or no time")

    async def _once(self, text: str, argument: str) -> str:
        async with self._turn:
            shell = self._idle.pop() if self._idle else self._make_shell(await self._as_now())

            def work() -> str:
                try:
                    return shell.run(text, argument)
                except BaseException:
                    shell.close()
                    raise

            try:
                answer = await self._threads.run(work, abort=shell.cut)
            except asyncio.CancelledError:
                await uninterrupted(self._threads.run(shell.close))  # it may have ended well just now
                raise
            self._idle.append(shell)
            return answer

    async def _abandon(self) -> None:
        """Those that nobody uses now: without a word to the host, which removes them in time."""
        while self._idle:
            shell = self._idle.pop()
            shell.abandon()
            await uninterrupted(self._threads.run(shell.close))

    async def _as_now(self) -> Endpoint:
        """With the password that its file holds now."""
        password = self._endpoint.password
        return self._endpoint if password is None else replace(self._endpoint, password=await current(password))

    async def aclose(self) -> None:
        while self._idle:
            await self._threads.run(self._idle.pop().close)
        self._threads.close()


def _result(answer: str, script: str, endpoint: Endpoint) -> Any:
    """`failure` of what the script says went wrong."""
    try:
        told = json.loads(answer)
        if told["ok"]:
            return told["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise HypervFailure(
            f"host {endpoint}: {script} did not answer as our scripts do", host=str(endpoint)
        ) from error
    raise failure(told, doing=f"host {endpoint}: {script}")
