"""The port to PowerShell, against the double: what is lost is tried again, what is refused is not, and nothing is left."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from hypervisors.hyperv import jobs, shell
from hypervisors.hyperv.endpoint import Auth, Endpoint
from hypervisors.hyperv.errors import HypervBusy, HypervFailure
from hypervisors.hyperv.psrp import PsrpPort
from stores.contract import MiB
from stores.errors import AccessDenied, NotFound, Retry, TlsFailed, Unavailable
from stores.secret import Secret
from tests.doubles.hyperv import Host, WireFault
from tests.doubles.hyperv.faults import Message
from tests.doubles.hyperv.host import PASSWORD
from tests.doubles.hyperv.wsman import MAX_SHELLS, NO_SUCH_SHELL
from tests.hyperv import disk, dynamic, port_to, until

# ---------------------------------------------------------------------------------------------------- who is there


@pytest.mark.parametrize("by", ["negotiate", "certificate", "pinned", "pinned and certificate"])
async def test_a_result_arrives(hyperv: Host, by: str) -> None:
    endpoint = hyperv.with_certificate() if "certificate" in by else hyperv.endpoint
    if "pinned" in by:
        endpoint = replace(endpoint, address="127.0.0.1", ca_file=None, fingerprint=sha256(hyperv.certificate).digest())
    port = port_to(endpoint)
    try:
        assert (await port.run("get-host", {}))["name"] == "HYPERV"
    finally:
        await port.aclose()
    await until(lambda: hyperv.server.connections == 0)


async def test_results_are_as_large_as_they_are(hyperv: Host, powershell: PsrpPort) -> None:
    """In both directions more than one message holds, and not in ASCII."""
    name = "ü€" * 150_000
    hyperv.model.add_machine(name)
    found = await powershell.run("get-disks", {"vm": name})
    assert found["disks"] == []
    made = await powershell.run("new-checkpoint", {"vm": name, "name": name})
    assert made["name"] == name


async def test_wrong_credentials_are_tried_once(hyperv: Host) -> None:
    port = port_to(replace(hyperv.endpoint, password=Secret("not the password")))
    with pytest.raises(AccessDenied, match="credentials"):
        await port.run("get-host", {})
    await port.aclose()
    assert hyperv.server.refused == 1


@pytest.mark.parametrize("message", ["Command", "Receive"])
async def test_a_session_that_ended_is_begun_anew_once(hyperv: Host, powershell: PsrpPort, message: Message) -> None:
    """With the password as it is now. A host that refuses that one too is not asked again."""
    for _ in range(2):
        await powershell.run("get-host", {})
        hyperv.faults.wire[:] = [WireFault(message, action="unauthorised", times=2)]
        assert (await powershell.run("get-host", {}))["name"] == "HYPERV"
        assert hyperv.faults.wire[0].hits == 2
    refused: list[tuple[Message, int]] = [("Create", 1), (message, 2)]
    for where, hits in refused:
        hyperv.faults.wire[:] = [WireFault(message, action="unauthorised", times=2)]
        hyperv.faults.wire += [WireFault(where, action="unauthorised", times=None)]
        with pytest.raises(AccessDenied, match="credentials"):
            await powershell.run("get-host", {})
        assert [fault.hits for fault in hyperv.faults.wire] == [2, hits]
        hyperv.faults.wire.clear()
        await powershell.run("get-host", {})
    await hyperv.shells.close()


@pytest.mark.parametrize("wrong", [{"ca_file": None}, {"fingerprint": bytes(32)}, {"address": "127.1"}])
async def test_another_certificate_is_not_talked_to(hyperv: Host, wrong: dict[str, Any]) -> None:
    """Of an authority that nobody trusts; not the pinned one; without the host's name in it."""
    port = port_to(replace(hyperv.endpoint, **wrong))
    with pytest.raises(TlsFailed) as caught:
        await port.run("get-host", {})
    await port.aclose()
    assert caught.value.retry is Retry.OPERATOR
    assert hyperv.faults.messages == []


def test_an_endpoint_that_lacks_what_it_needs() -> None:
    for told in ({"user": "agent"}, {"auth": Auth.CERTIFICATE}):
        with pytest.raises(ValueError, match="needs"):
            Endpoint("hyperv", **told)


async def test_nobody_is_there(hyperv: Host) -> None:
    await hyperv.server.stop()
    port = port_to(hyperv.endpoint)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await port.run("get-host", {}, timeout_s=1)
    await port.aclose()


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
    hyperv: Host, powershell: PsrpPort, when: str, action: str
) -> None:
    # A 401 to the very first message is what wrong credentials get; later ones ask only to be told again who we are.
    for step in range(1 if action == "unauthorised" else 0, STEPS):
        fault = WireFault("*", when, action, skip=step)  # type: ignore[arg-type]
        hyperv.faults.wire.append(fault)
        name = f"{step}.vhdx"
        made = await jobs.make_disk(powershell, dynamic(name, 4 * MiB), operation=f"op-{step}")
        assert (made["path"], made["size"]) == (disk(name), 4 * MiB)
        assert await powershell.run("get-operations", {}) == {"operations": []}
        assert fault.hits == 1
        hyperv.faults.wire.clear()


async def test_a_connection_that_does_not_come_about(hyperv: Host, powershell: PsrpPort) -> None:
    hyperv.faults.wire.append(WireFault("connect", times=2))
    assert (await powershell.run("get-host", {}))["name"] == "HYPERV"


async def test_a_shell_that_the_host_removed_meanwhile(hyperv: Host, powershell: PsrpPort) -> None:
    await powershell.run("get-host", {})
    await hyperv.shells.close()
    assert (await powershell.run("get-host", {}))["name"] == "HYPERV"


async def test_a_host_that_is_restarted(hyperv: Host, powershell: PsrpPort) -> None:
    await powershell.run("get-host", {})
    await hyperv.server.stop()
    await hyperv.shells.close()
    late = asyncio.create_task(powershell.run("get-host", {}))
    await asyncio.sleep(0.05)
    await hyperv.server.start()
    assert (await late)["name"] == "HYPERV"


async def test_a_script_that_takes_longer_than_the_host_waits_to_say_so(hyperv: Host, powershell: PsrpPort) -> None:
    hyperv.scripts.slow_s = 2.5  # over two polls
    assert (await powershell.run("get-host", {}))["name"] == "HYPERV"
    assert len(hyperv.scripts.ran) == 1


async def test_quotas_are_waited_for(hyperv: Host, powershell: PsrpPort) -> None:
    hyperv.faults.wire.append(WireFault("Create", action="fault", code=MAX_SHELLS, times=3))
    assert (await powershell.run("get-host", {}))["name"] == "HYPERV"
    hyperv.faults.wire.append(WireFault("*", action="fault", code=MAX_SHELLS, times=None))
    with pytest.raises(HypervBusy, match="no room"):
        await powershell.run("get-host", {}, timeout_s=0.5)
    hyperv.faults.wire.clear()
    await hyperv.shells.close()  # as the host does when they have idled long enough: it refused to remove them


async def test_a_time_limit_ends_a_script_and_the_shell(hyperv: Host, powershell: PsrpPort) -> None:
    hyperv.scripts.slow_s = 60
    with pytest.raises(Unavailable, match=r"did not end get-host within 0\.5 s"):
        await powershell.run("get-host", {}, timeout_s=0.5)
    assert (hyperv.shells.running, hyperv.shells.open) == (0, {})


async def test_access_that_is_denied_is_not_tried_again(hyperv: Host, powershell: PsrpPort) -> None:
    hyperv.faults.wire.append(WireFault("Create", action="fault", code=5, times=None))
    with pytest.raises(AccessDenied, match="right"):
        await powershell.run("get-host", {})
    assert hyperv.faults.messages.count("Create") == 1
    hyperv.faults.wire.clear()


# ------------------------------------------------------------------------------------------------------------- ending


@pytest.mark.parametrize("message", ["connect", "Create", "Receive", "Command", "Signal"])
async def test_a_cancelled_call_leaves_nothing_whatever_the_host_does(
    hyperv: Host, powershell: PsrpPort, message: str
) -> None:
    fault = WireFault(message, action="hang")  # type: ignore[arg-type]
    hyperv.faults.wire.append(fault)
    call = asyncio.create_task(powershell.run("get-host", {}))
    await until(lambda: fault.hits == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (hyperv.shells.open, hyperv.shells.running) == ({}, 0)
    assert (await powershell.run("get-host", {}))["name"] == "HYPERV"


async def test_a_call_that_is_cancelled_while_its_script_runs(hyperv: Host, powershell: PsrpPort) -> None:
    hyperv.scripts.slow_s = 60
    call = asyncio.create_task(powershell.run("get-host", {}))
    await until(lambda: hyperv.shells.running == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (hyperv.shells.open, hyperv.shells.running) == ({}, 0)


async def test_calls_that_were_cancelled_before_their_turn(hyperv: Host) -> None:
    port = port_to(hyperv.endpoint, limit=1)
    hyperv.scripts.slow_s = 60
    calls = [asyncio.create_task(port.run("get-host", {})) for _ in range(5)]
    await until(lambda: hyperv.shells.running == 1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert all(call.cancelled() for call in calls)
    assert len(hyperv.scripts.ran) == 1
    await port.aclose()


async def test_there_are_only_so_many_threads_and_shells(hyperv: Host) -> None:
    port = port_to(hyperv.endpoint, limit=3)
    hyperv.scripts.slow_s = 0.05
    seen: set[tuple[int, int]] = set()

    async def watched() -> None:
        while True:
            threads = [one for one in threading.enumerate() if one.name.startswith("powershell")]
            seen.add((len(threads), len(hyperv.shells.open)))
            await asyncio.sleep(0.002)

    watch = asyncio.create_task(watched())
    await asyncio.gather(*(port.run("get-host", {}) for _ in range(12)))
    watch.cancel()
    await asyncio.wait([watch])
    assert max(threads for threads, _ in seen) == 3
    assert max(shells for _, shells in seen) == 3
    await port.aclose()
    await port.aclose()
    assert hyperv.shells.open == {}


# -------------------------------------------------------------------------------------------------- what is refused


async def test_errors_of_scripts_are_not_tried_again(hyperv: Host, powershell: PsrpPort) -> None:
    with pytest.raises(NotFound) as caught:
        await powershell.run("get-vhd", {"path": disk("none.vhdx")})
    assert caught.value.details["hresult"] == "0x80070002"
    assert len(hyperv.scripts.ran) == 1


async def test_a_text_that_the_host_does_not_take(
    hyperv: Host, powershell: PsrpPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypervisors.hyperv.texts.text", lambda name: "param([string]$Json) Get-Everything")
    with pytest.raises(HypervFailure) as caught:
        await powershell.run("get-everything", {})
    assert caught.value.id == "UnknownScript"
    assert hyperv.scripts.unknown == ["param([string]$Json) Get-Everything"]
    hyperv.scripts.unknown.clear()


async def test_what_answers_is_no_script_of_ours(
    hyperv: Host, powershell: PsrpPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypervisors.hyperv.texts.text", lambda name: "$PSVersionTable.PSVersion.ToString()")
    with pytest.raises(HypervFailure, match="did not answer as our scripts do"):
        await powershell.run("get-host", {})


async def test_a_host_without_winrm(hyperv: Host, powershell: PsrpPort) -> None:
    hyperv.faults.wire.append(WireFault("Create", action="http", status=404, times=None))
    with pytest.raises(HypervFailure, match="no WinRM is there"):
        await powershell.run("get-host", {})
    hyperv.faults.wire.clear()


async def test_no_secret_in_logs_and_errors(hyperv: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The log is searched by `tests.secret_scan` after every test; here everything is logged."""
    caplog.set_level(logging.DEBUG)
    port = port_to(hyperv.endpoint)
    hyperv.faults.wire.append(WireFault("Command"))
    await port.run("get-host", {})
    await port.aclose()
    assert caplog.records
    assert PASSWORD not in caplog.text
    assert PASSWORD not in repr(hyperv.endpoint)
    wrong = port_to(replace(hyperv.endpoint, password=Secret(PASSWORD + "x")))
    with pytest.raises(AccessDenied) as caught:
        await wrong.run("get-host", {})
    await wrong.aclose()
    assert PASSWORD not in f"{caught.value!r} {caught.value.details}"


def test_faults_are_sorted_by_their_numbers() -> None:
    """Those of the double are the ones that the port knows."""
    assert MAX_SHELLS in shell._QUOTAS
    assert NO_SUCH_SHELL not in shell._QUOTAS
