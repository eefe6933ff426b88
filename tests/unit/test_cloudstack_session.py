"""What a link decides: which server and when, what is due on a connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.transports.cloudstack.errors import LinkLost, LinkRejected
from agent.transports.cloudstack.models_session import ReadyCommand, StartupAnswer
from agent.transports.cloudstack.servers import Server, Servers, parse_server
from agent.transports.cloudstack.session import DEFAULT_INTERVAL_S, MOST_INTERVAL_S, Phase, Session

A, B, C = (Server(name, 8250) for name in ("a", "b", "c"))


# ----------------------------------------------------------------------------------------------------------- servers


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("ms1", Server("ms1", 8250)),
        (" 10.0.0.1:9000 ", Server("10.0.0.1", 9000)),
        ("fd00::1", Server("fd00::1", 8250)),
        ("[fd00::1]", Server("fd00::1", 8250)),
        ("[fd00::1]:9000", Server("fd00::1", 9000)),
    ],
)
def test_addresses(text: str, server: Server) -> None:
    assert parse_server(text) == server
    assert parse_server(str(server)) == server


@pytest.mark.parametrize(
    "text", ["", ":80", "a:", "a:0", "a:65536", "a:x", "[fd00::1", "[fd00::1]x", "a b", "u@h", "a/b"]
)
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"needs to be|port|address|IPv6|permitted"):
        parse_server(text)


def test_every_server_is_tried_in_turn() -> None:
    servers = Servers([A, B])
    tried = []
    for _ in range(5):
        tried.append(servers.current())
        servers.failed()
    assert tried == [A, B, A, B, A]


def test_list_of_the_server_replaces_the_configured_one() -> None:
    servers = Servers([A])
    servers.take(["b", "c:8250@static", "not an address", "b"], [], "static", 30)
    assert servers.current() == B
    assert servers.check_interval_s == 30
    assert str(servers) == "b,c@static"
    servers.take([], ["b"], None, None)
    assert servers.current() == B


def test_avoided_servers_are_last_choice() -> None:
    servers = Servers([A, B, C])
    servers.take(["a", "b", "c"], ["a"], "static", 0)
    assert servers.current() == B
    assert servers.others(B) == [C]
    servers.avoid(["a", "b", "c"])
    assert servers.current() == A


def test_the_first_one_is_preferred() -> None:
    servers = Servers([A, B])
    assert servers.better_than(A) is None
    assert servers.better_than(B) == A
    servers.go_to(A)
    servers.succeeded()
    assert servers.current() == A


def test_shuffled_servers_are_gone_back_to_once() -> None:
    servers = Servers([A])
    servers.take(["b", "a"], [], "shuffle", 1)
    assert servers.better_than(A) == B
    servers.go_to(B)
    assert servers.better_than(A) is None
    servers.take(["b", "a"], [], "shuffle", 1)
    assert servers.better_than(A) is None
    servers.take(["c", "a"], [], "shuffle", 1)
    assert servers.better_than(A) == C


def test_move_that_fails_is_not_tried_again() -> None:
    servers = Servers([A, B])
    servers.go_to(C)
    assert servers.current() == C
    servers.failed()
    assert servers.current() == A


def test_wait_doubles_when_all_were_tried() -> None:
    servers = Servers([A, B])
    waits = []
    for _ in range(9):
        servers.failed()
        waits.append(servers.delay_s(lambda: 1.0, first_s=5, most_s=60))
    assert waits == [5, 5, 10, 10, 20, 20, 40, 40, 60]
    servers.succeeded()
    servers.failed()
    assert servers.delay_s(lambda: 0.0, first_s=5, most_s=60) == 2.5


@given(st.integers(0, 3000), st.floats(0, 1))
def test_wait_is_bounded(failures: int, chance: float) -> None:
    servers = Servers([A])
    for _ in range(failures):
        servers.failed()
    assert 2.5 <= servers.delay_s(lambda: chance, first_s=5, most_s=60) <= 60


# ----------------------------------------------------------------------------------------------------------- session


def introduced(interval: int = 60, now: float = 100) -> Session:
    session = Session(now)
    session.introduced(StartupAnswer(result=True, pingInterval=interval), now)
    return session


def test_phases() -> None:
    session = Session(100)
    assert (session.phase, session.host_id) == (Phase.INTRODUCING, -1)
    session.introduced(StartupAnswer(result=True, hostId=0, pingInterval=30), 101)
    assert (session.phase, session.host_id, session.interval_s) == (Phase.INTRODUCED, -1, 30)
    session.ready(ReadyCommand(hostId=7))
    session.ready(ReadyCommand())
    assert (session.phase, session.host_id) == (Phase.READY, 7)
    session.introduced(StartupAnswer(result=True, hostId=8, pingInterval=5), 200)
    assert (session.phase, session.host_id, session.interval_s) == (Phase.READY, 8, 30)


def test_refusals_say_why() -> None:
    with pytest.raises(LinkRejected, match="no such zone"):
        Session(0).introduced(StartupAnswer(details="no such zone"), 0)
    with pytest.raises(LinkRejected, match="does not say why"):
        Session(0).introduced(StartupAnswer(), 0)
    with pytest.raises(LinkRejected, match="setup error"):
        Session(0).ready(ReadyCommand(refusal="setup error"))


@pytest.mark.parametrize(
    ("told", "taken"), [(0, DEFAULT_INTERVAL_S), (-5, DEFAULT_INTERVAL_S), (1, 1), (1 << 31, MOST_INTERVAL_S)]
)
def test_strange_intervals(told: int, taken: float) -> None:
    assert introduced(told).interval_s == taken


def test_pings_keep_their_rhythm() -> None:
    session = introduced(60, now=100)
    assert session.wait_s(100) == 60
    assert not session.ping_due(159.9)
    assert session.ping_due(163)  # late
    session.heard(163)
    assert not session.ping_due(163)
    assert session.wait_s(163) == 57  # the next one is not
    assert session.ping_due(220)
    session.heard(430)
    assert session.ping_due(430)  # some were missed altogether
    assert session.wait_s(430) == 30


def test_nothing_is_due_before_the_introduction_was_answered() -> None:
    session = Session(100, answer_within_s=60)
    assert not session.ping_due(159)
    assert session.wait_s(100) == 60
    with pytest.raises(LinkLost, match="said nothing for 60 s"):
        session.ping_due(160)


def test_silence_ends_a_session() -> None:
    session = introduced(60, now=100)
    assert session.ping_due(160)
    session.heard(170)
    assert session.ping_due(319)
    with pytest.raises(LinkLost, match="150 s are allowed"):
        session.ping_due(320)
