"""Subcommands about backups. They are commands of the agent, which has the way to the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from agent.cli_client import Json
from agent.cli_exit import Exit, fail, reporting, say
from agent.cli_remote import client_of, outcome_of, read_input
from agent.cli_show import size, when


def verify(file: str, path: str | None, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        store, found = _place(file, path, as_json)
        if not found:
            _usage(f"{file} names no backup: give --path", as_json)
        answer = outcome_of(
            client_of(socket, config), {"command": "VerifyBackup", "store": store, "path": found}, as_json
        )
        verified = answer["verified"]
        if as_json:
            print(json.dumps(answer))
        else:
            _show_verified(verified)
        if not verified["sound"]:
            raise SystemExit(Exit.FAILED)


def tree(file: str, path: str | None, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        store, found = _place(file, path, as_json)
        answer = outcome_of(
            client_of(socket, config), {"command": "ListBackups", "store": store, "path": found}, as_json
        )
        if as_json:
            print(json.dumps(answer))
            return
        backups = answer["backups"]
        _show_nodes(backups["roots"], "")
        for stray in backups["strays"]:
            say(f"{stray}  belongs to no backup")
        if not backups["roots"] and not backups["strays"]:
            say("there is none")


def _place(file: str, path: str | None, as_json: bool) -> tuple[Json, str]:
    """The store, and the path in it, which may be empty."""
    try:
        given = json.loads(read_input(file, as_json))
    except ValueError as error:
        _usage(f"{file} is not JSON: {error}", as_json)
    if isinstance(given, dict) and "storeType" in given:
        return given, path or ""
    if not isinstance(given, dict) or not isinstance(given.get("dataStore"), dict):
        _usage(f"{file} needs to hold a store, or a backup with its dataStore", as_json)
    return given["dataStore"], path if path is not None else str(given.get("path") or "")


def _show_verified(verified: Json) -> None:
    for checked in verified["chain"]:
        say(f"{checked['ref']}  {size(checked['size'])}  {checked.get('fault') or 'sound'}")
    if verified.get("fault"):
        say(f"{verified['ref']}  {verified['fault']}")
    say("sound" if verified["sound"] else "NOT sound: do not rely on it")


def _show_nodes(nodes: Sequence[Json], indent: str) -> None:
    for node in nodes:
        kind = "changes" if indent else "full"
        about = f"{node['volume']}, {node['snapshot']}, {when(node['created'])}, {kind}, {size(node['size'])}"
        say(f"{indent}{node['ref']}  {node['fault'] if node.get('fault') else about}")
        _show_nodes(node["children"], indent + "  ")


def _usage(message: str, as_json: bool) -> NoReturn:
    fail({"kind": "Usage", "retryable": "no", "message": message, "details": {}}, as_json, Exit.USAGE)
