"""Subcommands about the uploads of a running agent, and about emptying it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.cli_client import Client, Json
from agent.cli_exit import Exit, reporting, say
from agent.cli_remote import client_of
from agent.cli_show import show_table, size, when

WAIT_S = 30.0
"""Of one question to the agent, out of a longer wait: less than the client's patience for an answer."""
_BREAKERS = {
    "closed": "failed when it was last tried",
    "open": "is left alone for a while: it failed again and again",
    "half-open": "is tried again",
}
_BLOCKED = ("failed", "refused")


def list_uploads(socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        answer = client_of(socket, config).call("GET", "/v1/uploads")
        if as_json:
            print(json.dumps(answer))
            return
        _show_uploads(answer["uploads"])
        for store, state in answer["breakers"].items():
            say(f"{store} {_BREAKERS.get(state, state)}")


def show(upload: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        _print(client_of(socket, config).call("GET", f"/v1/uploads/{upload}"), as_json)


def wait(upload: str | None, timeout_s: float | None, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        client = client_of(socket, config)
        named = [upload] if upload else [each["id"] for each in client.call("GET", "/v1/uploads")["uploads"]]
        late = None if timeout_s is None else time.monotonic() + timeout_s
        ended = [_ended(client, each, late) for each in named]
        if upload:
            _print(ended[0], as_json)
        elif as_json:
            print(json.dumps({"uploads": ended}))
        else:
            _show_uploads(ended)
        code = max((_exit_of(each["state"]) for each in ended), default=Exit.OK)
        raise SystemExit(code)


def retry(upload: str | None, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        path = f"/v1/uploads/{upload}/retry" if upload else "/v1/uploads/retry"
        answer = client_of(socket, config).call("POST", path)
        print(json.dumps(answer) if as_json else f"{answer['uploads']} are tried now")


def cancel(upload: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        _print(client_of(socket, config).call("DELETE", f"/v1/uploads/{upload}"), as_json)


def drain(
    wait_: bool, end: bool, timeout_s: float | None, socket: Path | None, config: Path | None, as_json: bool
) -> None:
    with reporting(as_json):
        client = client_of(socket, config)
        if end:
            _show_drain(client.call("DELETE", "/v1/drain"), as_json)
            return
        answer = client.call("POST", "/v1/drain")
        if wait_:
            late = None if timeout_s is None else time.monotonic() + timeout_s
            for seconds in _waits(late):
                answer = client.call("GET", "/v1/drain", wait=seconds)
                if answer["stored"] or _only_blocked(answer):
                    break
        _show_drain(answer, as_json)
        if not answer["stored"]:
            raise SystemExit(Exit.OPERATOR if _only_blocked(answer) else Exit.RETRY)


def _ended(client: Client, upload: str, late: float | None) -> Json:
    found: Json = {}
    for seconds in _waits(late):
        found = client.call("GET", f"/v1/uploads/{upload}", wait=seconds)
        if _exit_of(found["state"]) is not Exit.RETRY:
            break
    return found


def _waits(late: float | None) -> Iterator[float]:
    """How long to ask the agent to wait, again and again, until that time. At least once."""
    while True:
        left = WAIT_S if late is None else max(0.0, late - time.monotonic())
        yield min(WAIT_S, left)
        if left == 0:
            return


def _exit_of(state: str) -> Exit:
    if state in _BLOCKED:
        return Exit.OPERATOR
    return {"stored": Exit.OK, "cancelled": Exit.FAILED, "cancelling": Exit.FAILED}.get(state, Exit.RETRY)


def _only_blocked(drained: Json) -> bool:
    return bool(drained["blocked"]) and not drained["commands"] and drained["blocked"] == drained["uploads"]


def _print(upload: Json, as_json: bool) -> None:
    if as_json:
        print(json.dumps(upload))
        return
    say(f"upload {upload['id']} of command {upload['command']}: {upload['state']}")
    say(f"  {upload['ref']} to {upload['store']}, in pool {upload['pool']}")
    say(
        f"  {size(upload['sent'])} of {size(upload['size'])} sent, {size(upload['resumed'])} of that by an earlier attempt"
    )
    say(f"  staged {when(upload['created'])}, attempts {upload['attempts']}")
    if "nextAttempt" in upload:
        say(f"  next attempt in {upload['nextAttempt']:.0f} s")
    if "error" in upload:
        say(f"  {upload['error'].get('kind')}: {upload['error'].get('message')}")


def _show_uploads(uploads: Sequence[Json]) -> None:
    rows = (
        (
            each["id"],
            each["state"],
            size(each["size"]),
            size(each["sent"]),
            str(each["attempts"]),
            when(each["created"]),
            str(each.get("error", {}).get("kind", "")),
            each["ref"],
            each["store"],
        )
        for each in uploads
    )
    show_table(("ID", "STATE", "SIZE", "SENT", "ATTEMPTS", "STAGED", "ERROR", "OBJECT", "STORE"), rows)


def _show_drain(drained: Json, as_json: bool) -> None:
    if as_json:
        print(json.dumps(drained))
        return
    say("takes no new commands" if drained["draining"] else "takes commands")
    if drained["stored"]:
        say("everything is stored")
    else:
        say(
            f"not stored: {drained['uploads']} uploads with {size(drained['bytes'])}; {drained['commands']} commands go on"
        )
    if drained["blocked"]:
        say(f"{drained['blocked']} of them need an operator: storage-agent uploads ls")
