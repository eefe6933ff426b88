"""`check-store`: the promises of the store contract, tried on the operator's own store. Needs no agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from agent.cli_exit import Exit, reporting, say
from agent.cli_local import usage_error
from agent.cli_remote import read_input
from agent.config_load import Loaded, load
from stores.checking import Outcome, StoreCheck, Verdict
from stores.errors import AccessDenied
from stores.to import DataStoreTO


def check_store(file: str, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        loaded = load(config)
        to = _store_of(file, as_json)
        try:
            outcomes = asyncio.run(_checked(loaded, to, as_json))
        except asyncio.CancelledError:
            raise SystemExit(Exit.INTERRUPTED) from None
        broken = sum(outcome.verdict is Verdict.BROKEN for outcome in outcomes)
        if as_json:
            print(json.dumps({"ok": not broken, "promises": [_as_json(outcome) for outcome in outcomes]}))
        else:
            say(f"{broken} of {len(outcomes)} promises are broken" if broken else "ok: every promise on offer is kept")
        if broken:
            raise SystemExit(Exit.FAILED)


def _store_of(file: str, as_json: bool) -> DataStoreTO:
    """What the file says. It holds keys: `AccessDenied` where others may read it."""
    if file != "-":
        with contextlib.suppress(OSError):
            status = os.stat(file)
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                raise AccessDenied(f"others may read {file}, which holds keys: chmod 600 {file}", file=file)
    body = read_input(file, as_json)
    from pydantic import TypeAdapter, ValidationError

    from agent.failures import invalid

    adapter: TypeAdapter[Any] = TypeAdapter(DataStoreTO)
    try:
        found: DataStoreTO = adapter.validate_json(body)
    except ValidationError as error:
        if not any(problem["loc"] for problem in error.errors(include_input=False)):
            usage_error(f"{file} does not hold a store (a DataStoreTO) as JSON", as_json)
        raise invalid(error) from None
    return found


async def _checked(loaded: Loaded, to: DataStoreTO, as_json: bool) -> list[Outcome]:
    """One line as each promise is decided. SIGTERM ends it as Ctrl-C does: with everything removed."""
    from agent.wiring import nfs_mounts, store_settings
    from stores.resolver import Resolver
    from stores.transfer.engine import TransferEngine

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    transfer = loaded.config.transfer
    engine = TransferEngine(memory=transfer.memory, threads=transfer.threads, scratch=transfer.scratch_dir)
    mounts = nfs_mounts(loaded.config)
    resolver = Resolver(store_settings(loaded.config), engine, mounts=mounts)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="check-store-", dir=transfer.scratch_dir) as folder:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(contextlib.aclosing(engine))
            if mounts is not None:
                stack.callback(mounts.close)
                stack.push_async_callback(mounts.undo)
            await stack.enter_async_context(contextlib.aclosing(resolver))
            check = StoreCheck(resolver.store(to), secrets.token_hex(8), Path(folder))
            if not as_json:
                say(f"all that is made is below {check.prefix}, and is removed at the end")
            async with contextlib.aclosing(check.run()) as tried:
                async for outcome in tried:
                    outcomes.append(outcome)
                    if not as_json:
                        _show(outcome, len(outcomes), check.promises)
    return outcomes


def _show(outcome: Outcome, number: int, of: int) -> None:
    seen = f": {outcome.seen}" if outcome.seen else ""
    say(f"{number:2}/{of}  {outcome.verdict:11}  {outcome.promise}{seen}")
    sys.stdout.flush()


def _as_json(outcome: Outcome) -> dict[str, str]:
    return {"promise": outcome.promise, "verdict": outcome.verdict.value, "seen": outcome.seen}
