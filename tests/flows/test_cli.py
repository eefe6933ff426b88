"""The command line against the real agent: what it prints, how it exits, and what it survives."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.cli import app
from agent.config_text import sample
from tests.agent_process import AGENT, WAIT_S, AgentHost, agent_host
from tests.servers import NginxServer, free_ports

LOOPBACK = '[urls]\nallow_http = true\nallow_networks = ["127.0.0.0/8"]\nports = []\n[transfer]\nattempts = 1\n'


@pytest.fixture(scope="module")
def host() -> Iterator[AgentHost]:
    with agent_host(LOOPBACK) as started:
        yield started


@pytest.fixture(scope="module")
def slow(nginx: NginxServer) -> str:
    """The base URL of a store whose objects never end."""
    (nginx.root / "cli").mkdir(exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", nginx.root / "cli" / "big.raw", "64M"], check=True)
    return nginx.url("stall/cli")


def create(host: AgentHost, path: str, **more: Any) -> dict[str, Any]:
    return {"command": "CreateObject", "data": host.volume(path, size=1 << 20), **more}


def copy(host: AgentHost, url: str, key: str, path: str, **more: Any) -> dict[str, Any]:
    source = {"type": "template", "path": key, "format": "RAW", "imageDataStore": {"storeType": "image", "uri": url}}
    return {"command": "Copy", "source": source, "destination": host.volume(path, format="RAW"), **more}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(host: AgentHost, command_id: str) -> Callable[[], bool]:
    def is_running() -> bool:
        shown = host("commands", "show", command_id, "--json")
        return shown.code == 0 and shown.json["state"] == "running" and "progress" in shown.json

    return is_running


# ---------------------------------------------------------------------------------------------------- quick start


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['storage-agent', '--help']\n"
        "from agent.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "check-config" in done.stdout
    assert not loaded & {
        "pydantic",
        "rich",
        "aiohttp",
        "structlog",
        "botocore",
        "hypervisors",
        "stores",
        "asyncio",
        "http",
    }


@pytest.mark.parametrize(
    "command",
    [
        "",
        "run",
        "status",
        "submit",
        "commands",
        "commands ls",
        "commands show",
        "commands cancel",
        "explain",
        "inspect",
        "show-config",
        "check-config",
    ],
)
def test_every_command_has_help_and_json(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert "Usage: " in done.stdout
    assert ("--json" in done.stdout) is (command not in ("", "commands"))


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", CliRunner().invoke(app, ["--version"]).stdout)


# -------------------------------------------------------------------------------------------------------- outcomes


def test_success_is_0_and_shows_what_was_made(host: AgentHost) -> None:
    done = host("submit", host.write(create(host, "made", id="made-1")))
    assert done.code == 0, done.err
    assert "command made-1 CreateObject: succeeded" in done.out
    assert "durability: stored" in done.out
    assert "size 1.0 MiB" in done.out
    again = host("submit", "-", "--json", stdin=json.dumps(create(host, "made", id="made-1")))
    assert (again.code, again.json["state"], again.json["newData" if "newData" in again.json else "data"]["path"]) == (
        0,
        "succeeded",
        "made",
    )
    assert "made" in host.files()


def test_a_final_failure_is_1(host: AgentHost) -> None:
    host("submit", host.write(create(host, "twice")))
    done = host("submit", host.write(create(host, "twice")))
    assert (done.code, done.out) == (1, "")
    assert re.search(r"^command \w+ failed\nAlreadyExists: .*twice", done.err, re.MULTILINE)
    as_json = host("submit", host.write(create(host, "twice")), "--json")
    assert (as_json.code, as_json.json["error"]["kind"], as_json.err) == (1, "AlreadyExists", "")


def test_what_may_be_tried_again_is_3(host: AgentHost) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    done = host("submit", host.write(copy(host, url, "a.raw", "never")))
    assert done.code == 3, done
    assert "(trying again later may help)" in done.err
    assert "never" not in host.files()


def test_what_an_operator_has_to_solve_is_4(host: AgentHost) -> None:
    outside = create(host, "x")
    outside["data"]["dataStore"]["path"] = "/var/lib/elsewhere"
    done = host("submit", host.write(outside))
    assert done.code == 4, done
    assert "(an operator has to act first)" in done.err


def test_a_command_that_is_not_valid_names_the_places(host: AgentHost) -> None:
    wrong = create(host, "x")
    wrong["data"]["size"] = "big"
    wrong["sizes"] = 1
    done = host("submit", host.write(wrong))
    assert done.code == 1
    assert done.err.startswith("InvalidCommand: the command is not valid")
    assert "CreateObject.sizes" in done.err
    assert host("submit", "-", stdin="{").code == 1


def test_wrong_usage_is_2(host: AgentHost) -> None:
    assert host("submit").code == 2
    assert host("frobnicate").code == 2
    assert host("status", "--sockte", "/x").code == 2
    done = host("submit", "/nonexistent.json")
    assert (done.code, done.err) == (2, "Usage: /nonexistent.json cannot be read: No such file or directory\n")
    assert host("submit", "/nonexistent.json", "--json").json["error"]["kind"] == "Usage"


@pytest.mark.parametrize("arguments", [("status",), ("submit", "-"), ("commands", "ls"), ("commands", "show", "c")])
def test_no_agent_is_5(host: AgentHost, arguments: tuple[str, ...]) -> None:
    done = host(*arguments, "--socket", "/tmp/no-such-agent.sock")
    assert (done.code, done.out) == (5, "")
    assert done.err.startswith("Unreachable: no agent listens on /tmp/no-such-agent.sock")
    as_json = host(*arguments, "--json", "--socket", "/tmp/no-such-agent.sock")
    assert (as_json.code, as_json.json["error"]["kind"]) == (5, "Unreachable")


def test_something_else_than_an_agent_is_5(host: AgentHost, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    done = host("status", "--socket", tmp_path / "dead")
    assert (done.code, "is gone: is it running?" in done.err) == (5, True)


# -------------------------------------------------------------------------------------------------------- commands


def test_status_list_show_and_cancel(host: AgentHost, slow: str) -> None:
    assert re.match(r"storage-agent \d+\.\d+\.\d+ \(KVM\): ready\n", host("status").out)
    assert host("status", "--json").json["ready"] is True
    accepted = host("submit", "--no-wait", host.write(copy(host, slow, "big.raw", "slow", id="slow-1")))
    assert (accepted.code, accepted.out.startswith("command slow-1 Copy: accepted")) == (0, True)
    until(running(host, "slow-1"))
    shown = host("commands", "show", "slow-1")
    assert shown.code == 0
    assert "command slow-1 Copy: running" in shown.out
    listed = host("commands", "ls", "--state", "running")
    assert [line.split()[:3] for line in listed.out.splitlines()] == [
        ["ID", "COMMAND", "STATE"],
        ["slow-1", "Copy", "running"],
    ]
    cancelled = host("commands", "cancel", "slow-1")
    assert (cancelled.code, "command slow-1 Copy: cancelled" in cancelled.out) == (0, True)
    assert "slow" not in host.files()
    assert [c["id"] for c in host("commands", "ls", "--json", "--limit", "1").json["commands"]] == ["slow-1"]
    assert host("commands", "show", "no-such").code == 1
    assert host("commands", "ls", "--state", "odd").err.startswith("BadRequest: state needs to be one of accepted")


def test_a_terminal_gets_a_progress_bar(host: AgentHost, slow: str) -> None:
    ours, theirs = pty.openpty()
    command = host.write(copy(host, slow, "big.raw", "bar", id="bar-1"), "bar.json")
    with host.begin("submit", command, terminal=theirs) as child:
        os.close(theirs)
        seen = b""
        deadline = time.monotonic() + WAIT_S
        while b"/64.0 MiB" not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 65536)
        host("commands", "cancel", "bar-1")
        while select.select([ours], [], [], 10)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        out = child.communicate(timeout=WAIT_S)[0]
    os.close(ours)
    assert child.returncode == 3
    assert out == b""
    assert b"Cancelled: command bar-1 was cancelled" in seen


def test_ctrl_c_leaves_the_command_running_and_says_how_to_cancel_it(host: AgentHost, slow: str) -> None:
    command = host.write(copy(host, slow, "big.raw", "ctrlc", id="ctrlc-1"), "ctrlc.json")
    with host.begin("submit", command) as child:
        until(running(host, "ctrlc-1"))
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 130
    assert b"command ctrlc-1 goes on; storage-agent commands cancel ctrlc-1" in err
    assert b"Traceback" not in err
    assert running(host, "ctrlc-1")()
    assert host("commands", "cancel", "ctrlc-1").code == 0


def test_a_reader_that_has_seen_enough_is_no_error(host: AgentHost) -> None:
    script = f"{AGENT} show-config --defaults | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["/bin/bash", "-c", script], env=host.env(), capture_output=True, text=True, check=True)
    first, code = done.stdout.splitlines()
    assert first.startswith("# storage-agent")
    assert (code, done.stderr) == ("0", "")


def test_a_submission_survives_the_agent_s_death(slow: str) -> None:
    with agent_host(LOOPBACK) as host:
        command = host.write(copy(host, slow, "big.raw", "v", id="c-1"))
        with host.begin("submit", command) as child:
            until(running(host, "c-1"))
            host.stop(signal.SIGKILL)
            host.start()
            out, err = child.communicate(timeout=WAIT_S)
        assert (child.returncode, out) == (3, b"")
        assert b"Interrupted: " in err
        assert host.files() == []
        assert host.stop() == 0
        assert not host.socket.exists()
    assert "Traceback" not in err.decode()


# --------------------------------------------------------------------------------------------------- without an agent


@pytest.fixture(scope="module")
def offline() -> Iterator[AgentHost]:
    with agent_host(started=False) as host:
        yield host


def s3_template(format_: str, path: str) -> dict[str, Any]:
    store = {
        "storeType": "s3",
        "endPoint": "s3.example.org",
        "bucketName": "templates",
        "accessKey": "AK",
        "secretKey": "planted-sk",
    }
    return {"type": "template", "path": path, "format": format_, "imageDataStore": store}


def test_explain_same_format_goes_in_place(offline: AgentHost) -> None:
    asked = {"command": "Copy", "source": s3_template("QCOW2", "t.qcow2"), "destination": offline.volume()}
    done = offline("explain", offline.write(asked))
    assert done.code == 0, done.err
    assert re.search(r"^  chosen    RangeReader, native$", done.out, re.MULTILINE)
    assert "how: in place" in done.out
    found = offline("explain", "-", "--json", stdin=json.dumps(asked)).json
    assert (found["how"], found["source"]["chosen"], found["refusal"]) == ("in place", "RangeReader", None)
    assert "planted-sk" not in done.out + json.dumps(found)


def test_explain_a_conversion_reads_through_the_bridge(offline: AgentHost) -> None:
    asked = {"command": "Copy", "source": s3_template("VHD", "t.vhd"), "destination": offline.volume()}
    done = offline("explain", offline.write(asked))
    assert done.code == 0, done.err
    assert re.search(r"^  chosen    NbdExport, bridge$", done.out, re.MULTILINE)
    assert "how: converted" in done.out


def test_explain_an_iso_that_needs_a_file_is_refused(offline: AgentHost) -> None:
    asked = {"command": "AttachIso", "data": s3_template("ISO", "t.iso")}
    done = offline("explain", offline.write(asked))
    assert done.code == 1
    assert re.search(r"^  chosen    nothing$", done.out, re.MULTILINE)
    assert "refused: " in done.out
    found = offline("explain", "-", "--json", stdin=json.dumps(asked))
    assert (found.code, found.json["refusal_kind"]) == (1, "RequirementNotMet")


def test_explain_takes_what_negotiates_only(offline: AgentHost) -> None:
    done = offline("explain", "-", stdin='{"command": "Ping"}')
    assert (done.code, done.err.startswith("InvalidCommand: ")) == (1, True)


def test_inspect_accepts_and_refuses(offline: AgentHost, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.qcow2", tmp_path / "bad.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", good, "1G"], check=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", bad, "1G"], check=True
    )
    done = offline("inspect", good)
    assert (done.code, done.out.splitlines()[0]) == (0, "accepted: QCOW2 (version 3), 1.0 GiB virtual")
    found = offline("inspect", good, "--json").json
    assert (found["accepted"], found["format"], found["virtual_size"]) == (True, "QCOW2", 1 << 30)
    refused = offline("inspect", bad)
    assert (refused.code, refused.err.startswith("ImageRefused: ")) == (1, True)
    assert offline("inspect", bad, "--json").json["error"]["details"]["rule"]
    assert offline("inspect", good, "--format", "vhd").code == 1
    assert offline("inspect", good, "--format", "odd").code == 2
    assert offline("inspect", tmp_path).code == 2
    assert offline("inspect", tmp_path / "none").code == 2


def test_show_config(offline: AgentHost) -> None:
    assert offline("show-config", "--defaults").out == sample()
    shown = offline("show-config")
    assert f'state_dir = "{offline.root}/state"  # {offline.config}\n' in shown.out
    found = offline("show-config", "--json").json
    assert found["config"]["agent"]["state_dir"] == f"{offline.root}/state"
    assert found["sources"]["agent.state_dir"] == str(offline.config)


def test_check_config(offline: AgentHost, tmp_path: Path) -> None:
    assert offline("check-config").out == f"ok: {offline.config}\n"
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[agent]\nconcurency = 3\n[log]\nlevel = 1\n")
    done = offline("check-config", "--config", wrong)
    assert done.code == 4
    assert f"{wrong}: no option concurency in [agent] (did you mean concurrency?)\n" in done.err
    assert f"{wrong}: no section [log] (did you mean logs?)" in done.err
    wrong.write_text('[api]\ngroup = "no-such-group"\n')
    assert "there is no group 'no-such-group'" in offline("check-config", "--config", wrong).err
    assert offline("run", "--config", wrong).code == 4
    assert offline("check-config", "--config", tmp_path / "none", "--json").json["error"]["kind"] == "ConfigError"
