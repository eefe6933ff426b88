"""The command line's own logic: how it reads what an agent, or something else, answers, and how it shows that."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli_client import Client, Refused, Unreachable
from agent.cli_exit import Exit, reporting, show_failure
from agent.cli_show import show_answer, size
from stores.errors import NoSpace, NotFound, Unavailable


def whole_request(connection: socket.socket) -> bytes:
    """Body included: hanging up on unread bytes would be a reset."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += connection.recv(65536)
    head, _, body = seen.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length is not None and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """Something that listens, takes one request for each answer, says that, and hangs up. Gives the requests."""
    requests: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    requests.append(whole_request(connection))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, name="answering")
        thread.start()
        try:
            yield requests
        finally:
            thread.join(20)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_a_request_is_quoted_and_its_answer_read(tmp_path: Path) -> None:
    with answering(tmp_path / "s", http(b'{"id": "c"}')) as requests:
        client = Client(tmp_path / "s")
        assert client.call("GET", "/v1/commands/a b?c", limit=3, state=None) == {"id": "c"}
    assert requests[0].startswith(b"GET /v1/commands/a%20b%3Fc?limit=3 HTTP/1.1\r\n")


def test_a_refusal_is_told_apart_from_a_failed_command(tmp_path: Path) -> None:
    failure = {"kind": "Overloaded", "retryable": "yes", "message": "full", "details": {}}
    failed = {"id": "c", "state": "failed", "error": failure}
    answers = [http(json.dumps(body).encode(), "503 Service Unavailable") for body in ({"error": failure}, failed)]
    with answering(tmp_path / "s", *answers):
        client = Client(tmp_path / "s")
        with pytest.raises(Refused, match="full") as refused:
            client.call("POST", "/v1/commands", body=b"{}")
        assert refused.value.failure == failure
        assert client.call("POST", "/v1/commands", body=b"{}") == failed


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed the connection before it answered"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "cannot talk to the agent"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot talk to the agent"),
        (http(b"<html>"), "is no storage-agent: it answered 200"),
        (http(b"[]"), "is no storage-agent: it answered 200"),
    ],
)
def test_what_is_no_answer_of_an_agent(tmp_path: Path, answer: bytes, why: str) -> None:
    with answering(tmp_path / "s", answer), pytest.raises(Unreachable, match=why):
        Client(tmp_path / "s").call("GET", "/v1/status")


def test_a_stream_gives_its_events_until_it_ends_or_breaks(tmp_path: Path) -> None:
    event = b'event: progress\nid: 1\ndata: {"state": "running"}\n\n: alive\n\n'
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(event), event)
    with answering(tmp_path / "s", head, head + b"0\r\n\r\n"):
        client = Client(tmp_path / "s")
        for _ in ("broken", "ended"):
            assert list(client.events("c")) == [("progress", {"state": "running"})]
    with pytest.raises(Unreachable):
        list(client.events("c"))


def raising(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("none"), Exit.FAILED),
        (Unavailable("gone"), Exit.RETRY),
        (NoSpace("full"), Exit.OPERATOR),
        (Unreachable("away"), Exit.UNREACHABLE),
        (Refused({"kind": "K", "retryable": "yes", "message": "m"}), Exit.RETRY),
        (Refused({}), Exit.FAILED),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_every_failure_has_its_code(
    error: BaseException, code: Exit, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, reporting(as_json):
        raising(error)()
    assert left.value.code == code
    printed = capsys.readouterr()
    if as_json and code is not Exit.INTERRUPTED:
        assert set(json.loads(printed.out)) == {"error"}
    assert "Traceback" not in printed.err


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), reporting(False):
        raising(ZeroDivisionError())()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (1 << 60, "1024.0 PiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_several_problems_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [{"at": "a", "problem": "x"}, {"at": "b", "problem": "y"}]
    show_failure({"kind": "K", "retryable": "no", "message": "m", "details": {"problems": problems}})
    assert capsys.readouterr().err == "K: m\n  a: x\n  b: y\n"


def test_no_escape_sequence_reaches_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_failure({"kind": "NotFound", "retryable": "no", "message": "no object \x1b]0;owned\x07 é"})
    show_answer({"id": "c", "command": "X", "state": "odd", "accepted_at": 1.0, "names": ["\x9b2J"]})
    printed = capsys.readouterr()
    assert printed.err == "NotFound: no object \\x1b]0;owned\\x07 é\n"
    assert printed.out.endswith("names: \\x9b2J\n")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1), _json))
def test_whatever_a_later_agent_answers_can_be_shown(more: dict[str, Any]) -> None:
    with redirect_stdout(io.StringIO()) as shown:
        show_answer(
            {
                **more,
                "id": "c",
                "command": "New",
                "state": "odd",
                "error": None,
                "accepted_at": 1.0,
                "progress": None,
                "started_at": None,
                "finished_at": None,
            }
        )
    assert shown.getvalue().startswith("command c New: odd\n")
