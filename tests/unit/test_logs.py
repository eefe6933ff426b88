"""Logs: what a record carries, and what never gets into one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agent import logs
from agent.config import LogFormat, LogLevel
from stores.secret import MASK, Secret


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """The logging of the test run, as it was."""
    root = logging.getLogger()
    handlers, level, raising, config = root.handlers[:], root.level, logging.raiseExceptions, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising
    structlog.configure(**config)


@pytest.fixture
def stream() -> io.StringIO:
    """Logs as a service writes them."""
    output = io.StringIO()
    logs.configure(LogFormat.AUTO, LogLevel.DEBUG, output)
    return output


def records(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_ours_and_a_library_s_records_look_alike_and_carry_the_command(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(command_id="c-1"):
        structlog.get_logger("agent.x").info("moved", bytes=3)
        logging.getLogger("aiohttp.server").warning("late by %d s", 4)
    ours, theirs = records(stream)
    assert (ours["event"], ours["bytes"], ours["command_id"], ours["level"]) == ("moved", 3, "c-1", "info")
    assert (theirs["event"], theirs["command_id"], theirs["logger"]) == ("late by 4 s", "c-1", "aiohttp.server")
    assert ours.keys() == theirs.keys() | {"bytes"}


async def test_tasks_and_threads_inherit_the_command(stream: io.StringIO) -> None:
    stream.truncate(0)  # what asyncio said of its loop
    stream.seek(0)
    log = structlog.get_logger("agent.x")

    async def work() -> None:
        log.info("in a task")
        await asyncio.to_thread(log.info, "in a thread")

    with structlog.contextvars.bound_contextvars(command_id="c-1"):
        async with asyncio.TaskGroup() as group:
            group.create_task(work())
    log.info("elsewhere")
    assert [(r["event"], r.get("command_id")) for r in records(stream)] == [
        ("in a task", "c-1"),
        ("in a thread", "c-1"),
        ("elsewhere", None),
    ]


def test_levels_apply_to_both_kinds(stream: io.StringIO) -> None:
    logs.configure(LogFormat.JSON, LogLevel.WARNING, stream)
    structlog.get_logger("ours").info("ours")
    logging.getLogger("a.library").info("theirs")
    assert stream.getvalue() == ""


def test_a_traceback_shows_no_local_variables_and_is_redacted(stream: io.StringIO) -> None:
    def fail() -> None:
        local = "hunter2-local"
        raise ValueError(f"GET https://h/o?X-Amz-Signature=abcdef0123456789&x={len(local)}")

    for format_ in (LogFormat.JSON, LogFormat.CONSOLE):
        logs.configure(format_, LogLevel.DEBUG, stream)
        for log in (structlog.get_logger("agent.x"), logging.getLogger("asyncio")):
            try:
                fail()
            except ValueError:
                log.exception("it broke")
    text = stream.getvalue()
    assert text.count("ValueError: GET https://h/o?X-Amz-Signature=***&x=13") == 4
    assert text.count("in fail") == 4
    assert "hunter2-local" not in text


def test_a_record_that_cannot_be_formatted_shows_none_of_its_arguments(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("botocore").warning("%d", "planted-argument")
    assert "planted-argument" not in capsys.readouterr().err + stream.getvalue()


def test_auto_is_console_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    logs.configure(LogFormat.AUTO, LogLevel.INFO, terminal)
    structlog.get_logger("agent.x").info("moved", secretKey="hunter2", path="/a b")
    text = terminal.getvalue()
    assert "moved" in text
    assert "hunter2" not in text
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        json.loads(text)


# ---------------------------------------------------------------------------------------------------- redaction

_SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "text",
    [
        f"GET /b/k?X-Amz-Credential=AK%2F20260101%2Fus&X-Amz-Signature={_SECRET}&x=1",
        f"GET /b/k?X-Amz-Security-Token={_SECRET} HTTP/1.1",
        f"AWS4-HMAC-SHA256 Credential=AK/2026, SignedHeaders=host, Signature={_SECRET}",
        f"Signature:\n{_SECRET}",
        f"Authorization: Basic {_SECRET}",
        f"{{'Authorization': b'Bearer {_SECRET}'}}",
        f"x-amz-security-token:{_SECRET}",
        f"connecting to https://user:{_SECRET}@host/x",
        f"cifs://h/share?user=u&password={_SECRET}&domain=d",
        f"aws_secret_access_key={_SECRET}",
        f'{{"secretKey": "{_SECRET}", "bucketName": "b"}}',
        f"{{'secret_key': '{_SECRET}'}}",
        f"temp_url_sig={_SECRET}&temp_url_expires=1",
        f"passphrase={_SECRET}",
    ],
)
def test_text_that_holds_a_credential_is_cut(text: str) -> None:
    assert _SECRET not in logs.redact_text(text)
    assert MASK in logs.redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "GET /v1/commands/c-1 200",
        "https://host.example:8443/templates/a.qcow2?version=3",
        "the key k/1 in bucket b has no ETag",
        "signature version s3v4 is spoken",
        "nfs://host/export is mounted at /mnt/a",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert logs.redact_text(text) == text


@pytest.mark.parametrize(
    "key",
    [
        "secretKey",
        "secret",
        "password",
        "passphrase",
        "authorization",
        "X-Amz-Signature",
        "accessKey",
        "token",
        "Cookie",
    ],
)
def test_fields_with_secret_names_are_masked_at_any_depth(key: str) -> None:
    value = {"outer": [{key: _SECRET, "fine": 1}], key: {"inner": _SECRET}}
    assert logs.redact(value) == {"outer": [{key: MASK, "fine": 1}], key: MASK}


def test_secrets_bytes_and_objects_become_harmless_text() -> None:
    class Thing:
        def __repr__(self) -> str:
            return f"<Thing password={_SECRET}>"

    found = logs.redact({"a": Secret(_SECRET), "b": Thing(), "c": f"Bearer {_SECRET}".encode(), "d": None, "e": 1.5})
    assert _SECRET not in repr(found)
    assert (found["a"], found["d"], found["e"]) == (MASK, None, 1.5)


@given(st.text(max_size=200), st.text("abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789/+", min_size=12, max_size=60))
def test_a_signature_is_found_in_any_surroundings(around: str, secret: str) -> None:
    text = f"{around}&X-Amz-Signature={secret}&{around}"
    if secret not in around:
        assert secret not in logs.redact_text(text)


def test_no_escape_sequence_reaches_a_terminal() -> None:
    assert logs.redact_text("a\x1b]0;owned\x07b\x9bc\r\n\td") == "a\\x1b]0;owned\\x07b\\x9bc\\x0d\n\td"


def test_long_fields_are_cut() -> None:
    text = logs.redact_text("x" * 100_000)
    assert len(text) < logs.MAX_TEXT + 100
    assert text.endswith("(100000 characters)")


def test_hostile_text_costs_no_more_than_other_text() -> None:
    """Quadratic patterns would take minutes here, and the event loop with them."""
    for piece in ("x", "a.", "a://", "password ", "AWS4-HMAC-SHA256 ", "Signature:\n", "secret", "'", "@"):
        assert len(logs.redact_text(piece * 1_000_000)) < logs.MAX_TEXT + 100
