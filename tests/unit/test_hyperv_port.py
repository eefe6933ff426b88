"""The port to PowerShell, against the double: what is lost is tried again, what is refused is not, and nothing is left."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from hypervisors.hyperv import jobs, shell
from hypervisors.hyperv.endpoint import Auth, Endpoint
from hypervisors.hyperv.errors import HypervBusy, HypervFailure
from hypervisors.hyperv.psrp import PsrpPort
from stores.contract import MiB
from stores.errors import AccessDenied, NotFound, Retry, StorageError, TlsFailed, Unavailable
from stores.secret import Secret
from tests.doubles.hyperv import Host, ScriptFault, WireFault
from tests.doubles.hyperv.host import PASSWORD
from tests.doubles.hyperv.wsman import MAX_SHELLS, NO_SUCH_SHELL
from tests.hyperv import child, disk, dynamic, hyperv, port_to
from tests.secret_scan import register_secret


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    register_secret(PASSWORD, "the password of the Hyper-V host")
    async with hyperv(tmp_path) as made:
        yield made


@pytest.fixture
async def port(host: Host) -> AsyncIterator[PsrpPort]:
    made = port_to(host.endpoint)
    yield made
    await made.aclose()


async def until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not ready():
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------------------------------- who is there


@pytest.mark.parametrize("by", ["negotiate", "certificate", "pinned", "pinned and certificate"])
async def test_a_result_arrives(host: Host, by: str) -> None:
    endpoint = host.with_certificate() if "certificate" in by else host.endpoint
    if "pinned" in by:
        endpoint = replace(endpoint, address="127.0.0.1", ca_file=None, fingerprint=sha256(host.certificate).digest())
    port = port_to(endpoint)
    try:
        assert (await port.run("get-host", {}))["name"] == "HYPERV"
    finally:
        await port.aclose()
    await until(lambda: host.server.connections == 0)


async def test_results_are_as_large_as_they_are(host: Host, port: PsrpPort) -> None:
    """In both directions more than one message holds, and not in ASCII."""
    name = "ü€" * 150_000
    host.model.add_machine(name)
    found = await port.run("get-disks", {"vm": name})
    assert found["disks"] == []
    made = await port.run("new-checkpoint", {"vm": name, "name": name})
    assert made["name"] == name


async def test_wrong_credentials_are_tried_once(host: Host) -> None:
    port = port_to(replace(host.endpoint, password=Secret("not the password")))
    with pytest.raises(AccessDenied, match="credentials"):
        await port.run("get-host", {})
    await port.aclose()
    assert host.server.refused == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"ca_file": None},
        {"ca_file": None, "fingerprint": bytes(32)},
        {"address": "127.0.0.2", "fingerprint": bytes(32)},
    ],
)
async def test_another_certificate_is_not_talked_to(host: Host, wrong: dict[str, Any]) -> None:
    if wrong.get("address") == "127.0.0.2":
        wrong = {"fingerprint": sha256(b"another").digest(), "ca_file": None}
    port = port_to(replace(host.endpoint, **wrong))
    with pytest.raises(TlsFailed) as caught:
        await port.run("get-host", {})
    await port.aclose()
    assert caught.value.retry is Retry.OPERATOR
    assert host.faults.messages == []


def test_an_endpoint_that_lacks_what_it_needs() -> None:
    for told in ({"user": "agent"}, {"auth": Auth.CERTIFICATE}):
        with pytest.raises(ValueError, match="needs"):
            Endpoint("hyperv", **told)


async def test_nobody_is_there(host: Host) -> None:
    await host.server.stop()
    port = port_to(host.endpoint)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await port.run("get-host", {}, timeout_s=1)
    await port.aclose()
    assert threading.active_count() == 1 or all(not t.name.startswith("powershell") for t in threading.enumerate())


# -------------------------------------------------------------------------------------------------------- what is lost

STEPS = 6  # Create, Receive, Command, Receive, Signal of a first run, and the next run's Command


@pytest.mark.parametrize(
    ("action", "when"),
    [
        *[(action, when) for action in ("drop", "fault", "http") for when in ("before", "after")],
        ("unauthorised", "before"),  # who is asked again who they are, have not been heard
    ],
)
async def test_a_run_survives_what_happens_to_any_of_its_messages(
    host: Host, port: PsrpPort, when: str, action: str
) -> None:
    # A 401 to the very first message is what wrong credentials get; later ones ask only to be told again who we are.
    for step in range(1 if action == "unauthorised" else 0, STEPS):
        fault = WireFault("*", when, action, skip=step)  # type: ignore[arg-type]
        host.faults.wire.append(fault)
        name = f"{step}.vhdx"
        made = await jobs.make_disk(port, dynamic(name, 4 * MiB), operation=f"op-{step}")
        assert (made["path"], made["size"]) == (disk(name), 4 * MiB)
        assert await port.run("get-operations", {}) == {"operations": []}
        assert fault.hits == 1
        host.faults.wire.clear()


async def test_a_connection_that_does_not_come_about(host: Host, port: PsrpPort) -> None:
    host.faults.wire.append(WireFault("connect", times=2))
    assert (await port.run("get-host", {}))["name"] == "HYPERV"


async def test_a_shell_that_the_host_removed_meanwhile(host: Host, port: PsrpPort) -> None:
    await port.run("get-host", {})
    await host.shells.close()
    assert (await port.run("get-host", {}))["name"] == "HYPERV"


async def test_a_host_that_is_restarted(host: Host, port: PsrpPort) -> None:
    await port.run("get-host", {})
    await host.server.stop()
    await host.shells.close()
    late = asyncio.create_task(port.run("get-host", {}))
    await asyncio.sleep(0.05)
    await host.server.start()
    assert (await late)["name"] == "HYPERV"


async def test_a_script_that_takes_longer_than_the_host_waits_to_say_so(host: Host, port: PsrpPort) -> None:
    host.scripts.slow_s = 2.5  # over two polls
    assert (await port.run("get-host", {}))["name"] == "HYPERV"
    assert len(host.scripts.ran) == 1


async def test_quotas_are_waited_for(host: Host, port: PsrpPort) -> None:
    host.faults.wire.append(WireFault("Create", action="fault", code=MAX_SHELLS, times=3))
    assert (await port.run("get-host", {}))["name"] == "HYPERV"
    host.faults.wire.append(WireFault("*", action="fault", code=MAX_SHELLS, times=None))
    with pytest.raises(HypervBusy, match="no room"):
        await port.run("get-host", {}, timeout_s=0.5)
    host.faults.wire.clear()
    await host.shells.close()  # as the host does when they have idled long enough: it refused to remove them


async def test_a_time_limit_ends_a_script_and_the_shell(host: Host, port: PsrpPort) -> None:
    host.scripts.slow_s = 60
    with pytest.raises(Unavailable, match=r"did not end get-host within 0\.5 s"):
        await port.run("get-host", {}, timeout_s=0.5)
    assert (host.shells.running, host.shells.open) == (0, {})


async def test_access_that_is_denied_is_not_tried_again(host: Host, port: PsrpPort) -> None:
    host.faults.wire.append(WireFault("Create", action="fault", code=5, times=None))
    with pytest.raises(AccessDenied, match="right"):
        await port.run("get-host", {})
    assert host.faults.messages.count("Create") == 1
    host.faults.wire.clear()


# ------------------------------------------------------------------------------------------------------------- ending


@pytest.mark.parametrize("message", ["connect", "Create", "Receive", "Command", "Signal"])
async def test_a_cancelled_call_leaves_nothing_whatever_the_host_does(host: Host, port: PsrpPort, message: str) -> None:
    fault = WireFault(message, action="hang")  # type: ignore[arg-type]
    host.faults.wire.append(fault)
    call = asyncio.create_task(port.run("get-host", {}))
    await until(lambda: fault.hits == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (host.shells.open, host.shells.running) == ({}, 0)
    assert (await port.run("get-host", {}))["name"] == "HYPERV"


async def test_a_call_that_is_cancelled_while_its_script_runs(host: Host, port: PsrpPort) -> None:
    host.scripts.slow_s = 60
    call = asyncio.create_task(port.run("get-host", {}))
    await until(lambda: host.shells.running == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (host.shells.open, host.shells.running) == ({}, 0)


async def test_calls_that_were_cancelled_before_their_turn(host: Host) -> None:
    port = port_to(host.endpoint, limit=1)
    host.scripts.slow_s = 60
    calls = [asyncio.create_task(port.run("get-host", {})) for _ in range(5)]
    await until(lambda: host.shells.running == 1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert all(call.cancelled() for call in calls)
    assert len(host.scripts.ran) == 1
    await port.aclose()


async def test_there_are_only_so_many_threads_and_shells(host: Host) -> None:
    port = port_to(host.endpoint, limit=3)
    host.scripts.slow_s = 0.05
    seen: set[tuple[int, int]] = set()

    async def watched() -> None:
        while True:
            threads = [one for one in threading.enumerate() if one.name.startswith("powershell")]
            seen.add((len(threads), len(host.shells.open)))
            await asyncio.sleep(0.002)

    watch = asyncio.create_task(watched())
    await asyncio.gather(*(port.run("get-host", {}) for _ in range(12)))
    watch.cancel()
    await asyncio.wait([watch])
    assert max(threads for threads, _ in seen) == 3
    assert max(shells for _, shells in seen) == 3
    await port.aclose()
    await port.aclose()
    assert host.shells.open == {}


# -------------------------------------------------------------------------------------------------- what is refused


async def test_errors_of_scripts_are_not_tried_again(host: Host, port: PsrpPort) -> None:
    with pytest.raises(NotFound) as caught:
        await port.run("get-vhd", {"path": disk("none.vhdx")})
    assert caught.value.details["hresult"] == "0x80070002"
    assert len(host.scripts.ran) == 1


async def test_a_text_that_the_host_does_not_take(host: Host, port: PsrpPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypervisors.hyperv.texts.text", lambda name: "param([string]$Json) Get-Everything")
    with pytest.raises(HypervFailure) as caught:
        await port.run("get-everything", {})
    assert caught.value.id == "UnknownScript"
    assert host.scripts.unknown == ["param([string]$Json) Get-Everything"]
    host.scripts.unknown.clear()


async def test_what_answers_is_no_script_of_ours(host: Host, port: PsrpPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypervisors.hyperv.texts.text", lambda name: "$PSVersionTable.PSVersion.ToString()")
    with pytest.raises(HypervFailure, match="did not answer as our scripts do"):
        await port.run("get-host", {})


async def test_a_host_without_winrm(host: Host, port: PsrpPort) -> None:
    host.faults.wire.append(WireFault("Create", action="http", status=404, times=None))
    with pytest.raises(HypervFailure, match="no WinRM is there"):
        await port.run("get-host", {})
    host.faults.wire.clear()


async def test_no_secret_in_logs_and_errors(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The log is searched by `tests.secret_scan` after every test; here everything is logged."""
    caplog.set_level(logging.DEBUG)
    port = port_to(host.endpoint)
    host.faults.wire.append(WireFault("Command"))
    await port.run("get-host", {})
    await port.aclose()
    assert caplog.records
    assert PASSWORD not in caplog.text
    assert PASSWORD not in repr(host.endpoint)
    wrong = port_to(replace(host.endpoint, password=Secret(PASSWORD + "x")))
    with pytest.raises(AccessDenied) as caught:
        await wrong.run("get-host", {})
    await wrong.aclose()
    assert PASSWORD not in f"{caught.value!r} {caught.value.details}"


# --------------------------------------------------------------------------------------------------------- operations


async def test_a_disk_is_made_once_under_one_id(host: Host, port: PsrpPort) -> None:
    argument = {**dynamic("a.vhdx", 4 * MiB), "operation": "one", "partial": disk("a.one.partial.vhdx")}
    first = await port.run("new-vhd", argument)
    assert await port.run("new-vhd", argument) == first
    with pytest.raises(StorageError) as caught:
        await port.run("new-vhd", {**argument, "operation": "two"})
    assert caught.value.kind == "AlreadyExists"
    with pytest.raises(HypervFailure, match="OperationReused"):
        await port.run("new-vhd", {**argument, "path": disk("b.vhdx")})
    await jobs.remove_operation(port, "one", discard=False)
    assert (await port.run("get-vhd", {"path": disk("a.vhdx")}))["disk_id"] == first["disk_id"]


async def test_a_disk_whose_maker_is_cancelled_is_gone(host: Host, port: PsrpPort, tmp_path: Path) -> None:
    host.faults.scripts.append(ScriptFault("new-vhd", after=True))  # it has its name already
    making = asyncio.create_task(jobs.make_disk(port, dynamic("a.vhdx", 4 * MiB), operation="one"))
    await until(lambda: (tmp_path / "pool" / "a.vhdx").exists())
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert list((tmp_path / "pool").iterdir()) == []


async def test_a_disk_of_somebody_else_stays(host: Host, port: PsrpPort, tmp_path: Path) -> None:
    await jobs.make_disk(port, dynamic("a.vhdx", 4 * MiB), operation="one")
    before = (tmp_path / "pool" / "a.vhdx").read_bytes()
    with pytest.raises(StorageError) as caught:
        await jobs.make_disk(port, dynamic("a.vhdx", 4 * MiB), operation="two")
    assert caught.value.kind == "AlreadyExists"
    assert (tmp_path / "pool" / "a.vhdx").read_bytes() == before


Work = Callable[[PsrpPort], Coroutine[Any, Any, None]]
CONVERTED = {"source": disk("child.vhdx"), "destination": disk("new.vhdx"), "kind": "Dynamic", "block_size": MiB}


async def chain(host: Host, port: PsrpPort) -> bytes:
    """`child.vhdx` on `base.vhdx`; what it holds."""
    await jobs.make_disk(port, dynamic("base.vhdx", 4 * MiB), operation="base")
    await host.model.vhds.write(disk("base.vhdx"), 0, b"base" * 1000)
    await jobs.make_disk(port, child("child.vhdx", "base.vhdx"), operation="child")
    await host.model.vhds.write(disk("child.vhdx"), 2 * MiB, b"child" * 1000)
    return await host.model.vhds.content(disk("child.vhdx"))


async def convert(port: PsrpPort, tell: Callable[[int], None] = lambda percent: None) -> None:
    await jobs.convert(port, CONVERTED, operation="job", tell=tell, poll_s=0.01)


async def merge(port: PsrpPort, tell: Callable[[int], None] = lambda percent: None) -> None:
    argument = {"path": disk("child.vhdx"), "destination": disk("base.vhdx")}
    await jobs.merge(port, argument, operation="job", tell=tell, poll_s=0.01)


@pytest.mark.parametrize(("work", "result"), [(convert, "new.vhdx"), (merge, "base.vhdx")])
async def test_a_job_that_is_polled(host: Host, port: PsrpPort, work: Any, result: str) -> None:
    content = await chain(host, port)
    host.model.let_jobs_end.clear()
    heard: list[int] = []

    def tell(percent: int) -> None:
        heard.append(percent)
        if len(heard) == 3:
            host.model.let_jobs_end.set()

    await work(port, tell)
    assert heard[:3] == [50, 50, 50]
    assert sha256(await host.model.vhds.content(disk(result))).digest() == sha256(content).digest()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("work", "result"), [(convert, "new.vhdx"), (merge, "base.vhdx")])
async def test_a_job_survives_lost_connections_at_every_message(
    host: Host, port: PsrpPort, work: Any, result: str, when: str
) -> None:
    content = await chain(host, port)
    await port.aclose()
    port = port_to(host.endpoint)
    step, hits = 0, 1
    while hits:
        fault = WireFault("*", when, skip=step)  # type: ignore[arg-type]
        host.faults.wire[:] = [fault]
        await work(port)
        assert sha256(await host.model.vhds.content(disk(result))).digest() == sha256(content).digest(), step
        host.faults.wire.clear()
        if work is convert:
            assert (await port.run("delete-file", {"path": disk(result)}))["deleted"]
        else:
            await host.model.vhds.set_parent(disk("child.vhdx"), disk("base.vhdx"), ignore_mismatch=True)
        step, hits = step + 1, fault.hits
    assert step > 8
    await port.aclose()


@pytest.mark.parametrize(("work", "result"), [(convert, "new.vhdx"), (merge, "base.vhdx")])
async def test_a_job_that_the_host_forgot_is_started_again(host: Host, port: PsrpPort, work: Any, result: str) -> None:
    content = await chain(host, port)
    host.model.let_jobs_end.clear()
    heard: list[int] = []

    def tell(percent: int) -> None:
        if not heard:
            host.model.forget_jobs()
            host.model.let_jobs_end.set()
        heard.append(percent)

    await work(port, tell)
    starts = [name for name, _ in host.scripts.ran if name.startswith("start-")]
    assert len(starts) == 2
    assert sha256(await host.model.vhds.content(disk(result))).digest() == sha256(content).digest()


async def test_a_conversion_that_is_cancelled_leaves_no_file(host: Host, port: PsrpPort, tmp_path: Path) -> None:
    await chain(host, port)
    host.model.let_jobs_end.clear()
    polled = asyncio.Event()
    working = asyncio.create_task(convert(port, lambda percent: polled.set()))
    await polled.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert sorted(file.name for file in (tmp_path / "pool").iterdir()) == ["base.vhdx", "child.vhdx"]


async def test_a_job_that_fails(host: Host, port: PsrpPort, tmp_path: Path) -> None:
    await chain(host, port)
    host.model.let_jobs_end.clear()

    def tell(percent: int) -> None:
        (tmp_path / "pool" / "base.vhdx").unlink(missing_ok=True)
        host.model.let_jobs_end.set()

    with pytest.raises(NotFound, match="start-convert-vhd"):
        await convert(port, tell)
    assert sorted(file.name for file in (tmp_path / "pool").iterdir()) == ["child.vhdx"]


async def test_a_host_that_is_gone_at_the_end_keeps_a_record(
    host: Host, port: PsrpPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_CLEANUP_S", 0.2)
    await chain(host, port)
    host.model.let_jobs_end.clear()

    def tell(percent: int) -> None:
        host.faults.wire.append(WireFault("*", times=None))
        raise RuntimeError("the agent has a problem of its own")

    with pytest.raises(RuntimeError):
        await convert(port, tell)
    host.faults.wire.clear()
    await host.shells.close()  # as the host does when they have idled long enough
    assert await port.run("get-operations", {}) == {"operations": ["job"]}
    await jobs.remove_operation(port, "job", discard=True, poll_s=0.01)


@pytest.mark.parametrize(("path", "operation"), [("D:\\a.vhdx", "a/b"), ("D:\\a.vhdx", ""), ("D:\\a.b\\c", "op")])
def test_names_of_partial_disks_that_cannot_be(path: str, operation: str) -> None:
    with pytest.raises(StorageError) as caught:
        jobs.partial_path(path, operation)
    assert caught.value.kind == "InvalidReference"


def test_faults_are_sorted_by_their_numbers() -> None:
    """Those of the double are the ones that the port knows."""
    assert MAX_SHELLS in shell._QUOTAS
    assert NO_SUCH_SHELL not in shell._QUOTAS
