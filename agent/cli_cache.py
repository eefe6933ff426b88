"""Subcommands about the cache of a running agent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.cli_client import Client, Json
from agent.cli_exit import Exit, fail, reporting
from agent.cli_remote import client_of, read_input, submit_body
from agent.cli_show import show_table, size, when

_PAGE = 1000
_DAY_S = 86400


def stats(socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        answer = client_of(socket, config).call("GET", "/v1/cache/pools")
        if as_json:
            print(json.dumps(answer))
        elif not answer["pools"]:
            print("no cache is configured")
        else:
            for pool in answer["pools"]:
                _show_pool(pool)


def list_entries(pool: str | None, limit: int, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        client = client_of(socket, config)
        names = [pool] if pool else [each["name"] for each in client.call("GET", "/v1/cache/pools")["pools"]]
        found = [entry for name in names for entry in _entries(client, name, limit)]
        if as_json:
            print(json.dumps({"entries": found}))
        else:
            _show_entries(found)


def show(key: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        _print(client_of(socket, config).call("GET", f"/v1/cache/entries/{key}"), as_json)


def explain(wanted: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        answer = client_of(socket, config).call("GET", "/v1/cache/explain", object=wanted)
        if as_json:
            print(json.dumps(answer))
            return
        for copy in answer["copies"]:
            entry = copy["entry"]
            print(
                f"{entry['ref']} is in pool {entry['pool']} as {entry['key']} ({size(entry['size'])}, {entry['state']})"
            )
            _list("here because", copy["here"])
            _list("stays because", copy["stays"] or ["nothing holds it: it may go when its room is needed"])
        for fill in answer["arriving"]:
            print(f"{fill['key']} is being fetched: {fill['stage']}, {size(fill['arrived'])} have arrived")
        if not answer["copies"] and not answer["arriving"]:
            print(f"{wanted} is not in the cache")


def pin(key: str, reason: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        client = client_of(socket, config)
        _print(client.call("PUT", f"/v1/cache/entries/{key}/pin", reason=reason or None), as_json)


def unpin(key: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        _print(client_of(socket, config).call("DELETE", f"/v1/cache/entries/{key}/pin"), as_json)


def evict(key: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        answer = client_of(socket, config).call("DELETE", f"/v1/cache/entries/{key}")
        print(json.dumps(answer) if as_json else f"gone: {size(answer['bytes'])} are free again")


def prefetch(file: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        body = read_input(file, as_json)
        try:
            data = json.loads(body)
        except ValueError as error:
            message = f"{file} is not JSON: {error}"
            fail({"kind": "Usage", "retryable": "no", "message": message, "details": {}}, as_json, Exit.USAGE)
        _submit({"command": "Prefetch", "data": data}, socket, config, as_json)


def scrub(
    pool: str | None, older_than: float, rate: int, socket: Path | None, config: Path | None, as_json: bool
) -> None:
    """`older_than` in days, `rate` in MiB per second. It may take as long as a command may."""
    with reporting(as_json):
        command = {
            "command": "ScrubCache",
            "olderThan": older_than * _DAY_S,
            "rate": rate << 20,
            "deadline_s": 7 * _DAY_S,
        }
        _submit(command | ({"pool": pool} if pool else {}), socket, config, as_json)


def reconcile(pool: str | None, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        _submit({"command": "ReconcileCache"} | ({"pool": pool} if pool else {}), socket, config, as_json)


def _submit(command: dict[str, Any], socket: Path | None, config: Path | None, as_json: bool) -> None:
    submit_body(client_of(socket, config), json.dumps(command).encode(), True, as_json)


def _entries(client: Client, pool: str, limit: int) -> list[Json]:
    found: list[Json] = []
    after: str | None = None
    while len(found) < limit:
        wanted = min(_PAGE, limit - len(found))
        page = client.call("GET", f"/v1/cache/pools/{pool}/entries", after=after, limit=wanted)
        found += page["entries"]
        after = page["next"]
        if after is None:
            break
    return found


def _print(answer: Json, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer))
        return
    for entry in answer["entries"]:
        print(f"{entry['key']} in pool {entry['pool']}: {entry['ref']} of {entry['store']}, {entry['state']}")
        print(f"  version   {entry['version'] or 'none: used once'}")
        print(f"  size      {size(entry['size'])}, {size(entry['charge'])} on disk at most")
        print(f"  digest    {entry['digest'] or 'not known yet'}, compared in full {when(entry['proved'])}")
        print(f"  fetched   {when(entry['published'])}, used {entry['hits']} times since, last {when(entry['used'])}")
        print(f"  may go    {'no: ' + entry['hold'] if entry['hold'] else 'yes'}")
        _list("pinned by", [f"{pin['reason']}, since {when(pin['since'])}" for pin in entry["pins"]])


def _show_pool(pool: Json) -> None:
    print(f"pool {pool['name']} in {pool['directory']}, at most {size(pool['configured'])}")
    if pool.get("ailment"):
        print(f"  SICK: {pool['ailment']}")
    else:
        sizes = ("limit", "used", "reserved", "pinned", "dirty", "quarantined")
        print("  " + ", ".join(f"{name} {size(pool[name])}" for name in sizes))
        print(f"  entries {pool['entries']}, fills {pool['fills']}, waiting {pool['waiting']}")
        _list("held by", pool["holders"])
    if pool["strayFiles"]:
        print(
            f"  {pool['strayFiles']} files are not the cache's ({size(pool['strayBytes'])}); cache reconcile lists them"
        )
    _list("gone since the start", [f"{reason}: {count}" for reason, count in pool["evictions"].items()])


def _show_entries(entries: Sequence[Json]) -> None:
    rows = (
        (e["key"], e["pool"], size(e["size"]), e["state"], e["hold"] or "", str(e["hits"]), when(e["used"]), e["ref"])
        for e in entries
    )
    show_table(("KEY", "POOL", "SIZE", "STATE", "HELD", "HITS", "LAST USE", "OBJECT"), rows)


def _list(title: str, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"  {title}: {line}")
