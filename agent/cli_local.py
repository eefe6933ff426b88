"""Subcommands that need no agent: the agent itself, explanations, the image gate, and the configuration."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from agent.cli_exit import Exit, fail, reporting
from agent.cli_remote import read_input
from agent.config_load import PREFIX, Loaded, load
from agent.config_text import effective, sample

if TYPE_CHECKING:  # imported by the subcommands that use them
    from hypervisors.images.gate import Verdict
    from stores.to import ImageFormat


def run(config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        extra = {f"{PREFIX}LOGS__FORMAT": "json"} if as_json else {}
        loaded = load(config, {**os.environ, **extra})
        from agent import daemon, logs

        logs.configure(loaded.config.logs.format, loaded.config.logs.level)
        daemon.run(loaded.config)


def mounter(config: Path | None) -> None:
    """One request from standard input, its answer to standard output."""
    with reporting(as_json=True):
        loaded = load(config)
        from agent.mounter import REQUEST_LIMIT, answer
        from agent.mounting import ToolMounter
        from stores.tools.process import ToolRunner

        line = sys.stdin.buffer.readline(REQUEST_LIMIT)
        sys.stdout.buffer.write(asyncio.run(answer(line, loaded.config, ToolMounter(ToolRunner()))))
        sys.stdout.buffer.flush()


def explain(file: str, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        loaded = load(config)
        body = read_input(file, as_json)
        from pydantic import ValidationError

        from agent.cli_show import show_explanation
        from agent.explain import EXPLAINABLE, EXPLANATION, explainer
        from agent.failures import invalid
        from agent.wiring import build

        try:
            asked = EXPLAINABLE.validate_json(body)
        except ValidationError as error:
            raise invalid(error) from None
        parts = build(loaded.config)
        explanation = explainer(parts.operations, loaded.config.agent.hypervisor)(asked)
        if as_json:
            print(EXPLANATION.dump_json(explanation).decode())
        else:
            show_explanation(explanation)
        if explanation.refusal is not None:
            raise SystemExit(Exit.FAILED)


def inspect(image: Path, format_: str | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        from agent.cli_show import size
        from stores.to import ImageFormat

        if not image.is_file():
            usage_error(f"{image} is not a file", as_json)
        if format_ is not None and format_.upper() not in ImageFormat.__members__:
            usage_error(f"{format_} is no image format; there are {', '.join(ImageFormat)}", as_json)
        declared = ImageFormat(format_.upper()) if format_ else None
        verdict = asyncio.run(_inspect(load(config), image.resolve(), declared))
        if as_json:
            print(json.dumps({"accepted": True, **dataclasses.asdict(verdict)}))
            return
        kind = f"{verdict.format} ({verdict.subformat})" if verdict.subformat else str(verdict.format)
        virtual = f", {size(verdict.virtual_size)} virtual" if verdict.virtual_size is not None else ""
        print(f"accepted: {kind}{virtual}")
        for note in verdict.notes:
            print(f"  {note}")


def show_config(defaults: bool, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        if defaults:
            print(sample(), end="")
            return
        loaded = load(config)
        if as_json:
            print(json.dumps({"config": loaded.config.model_dump(mode="json"), "sources": loaded.sources}))
        else:
            print(effective(loaded), end="")


def check_config(config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        loaded = load(config)
        _check(loaded)
        files = [str(path) for path in loaded.files]
        print(json.dumps({"ok": True, "files": files}) if as_json else f"ok: {', '.join(files) or 'defaults only'}")


def _check(loaded: Loaded) -> None:
    """What can be wrong beyond the values themselves: users, groups and certificates that are named."""
    from agent.security import UnixPolicy, server_tls
    from agent.wiring import hyperv_hosts, staging_zone, store_settings, xen_pools

    api = loaded.config.api
    UnixPolicy.resolve(api.users, api.group)
    if api.tls_cert and api.tls_key and api.tls_client_ca:
        server_tls(api.tls_cert, api.tls_key, api.tls_client_ca)
    store_settings(loaded.config)
    for pool in xen_pools(loaded.config):
        from hypervisors.passwords import read
        from hypervisors.xen.hosts import Trust

        Trust(pool.ca_file)
        if isinstance(pool.password, Path):
            read(pool.password)
    for host in hyperv_hosts(loaded.config):
        from hypervisors.passwords import read

        if isinstance(host.endpoint.password, Path):
            read(host.endpoint.password)
    if loaded.config.cloudstack.servers:
        from agent.transports.cloudstack.tls import client_context
        from agent.transports.cloudstack.transport import link_settings

        client_context(link_settings(loaded.config.cloudstack).identity)
        staging_zone(loaded.config)


async def _inspect(loaded: Loaded, image: Path, declared: ImageFormat | None) -> Verdict:
    from agent.wiring import build
    from hypervisors.images.gate import GateLimits, inspect
    from hypervisors.local_file import open_file

    parts = build(loaded.config)
    limits = GateLimits(virtual_size=loaded.config.images.max_virtual_size)
    async with contextlib.aclosing(parts), open_file(image, parts.engine) as reader:
        return await inspect(reader, declared=declared, limits=limits)


def usage_error(message: str, as_json: bool) -> NoReturn:
    fail({"kind": "Usage", "retryable": "no", "message": message, "details": {}}, as_json, Exit.USAGE)
