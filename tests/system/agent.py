"""The agent in the guest: installed, commanded by its command line, and looked at by systemd's eyes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from typing import Any

from tests.system.machine import Failed, Machine

UNIT = "storage-agent.service"

CONFIG = """
[kvm]
libvirt_uri = "none"

[api]
group = "storage-agent"
"""

_numbers = count(1)


@dataclass(frozen=True)
class Outcome:
    code: int
    answer: dict[str, Any]

    @property
    def kind(self) -> str | None:
        """Of the error, where there is one."""
        error = self.answer.get("error")
        return error["kind"] if error else None


class Agent:
    """See the module. Files that it writes are in /etc/storage-agent and, for a moment, in /run."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def install(self, disk: str) -> None:
        """From a tar on a disk of the guest, with a configuration beside it."""
        self.machine.run(
            f"tar -xf {disk} -C /root; dpkg --force-unsafe-io -i /root/storage-agent.deb; rm /root/storage-agent.deb"
        )
        self.configure(CONFIG)

    def configure(self, text: str, name: str = "storage-agent.toml") -> None:
        self.machine.put(f"/etc/storage-agent/{name}", text, mode="0640", group="storage-agent")

    def submit(self, command: dict[str, Any], *, fails: bool = False) -> Outcome:
        """Send a command and wait for its outcome. It has to succeed, or with `fails` to fail."""
        name = self._write(command)
        code, output = self.machine.tried(f"storage-agent submit --json {name}; code=$?; rm {name}; exit $code")
        if (code != 0) is not fails:
            raise Failed(f"{command['command']} ended with {code}: {output[-2000:]}\n{self.log()}")
        return Outcome(code, json.loads(output[output.index("{") :]))

    def killed(self, command: dict[str, Any], identity: str, *, when: str) -> None:
        """Send a command under that id, and kill the daemon with -9 as soon as the script `when` ends with 0. Returns when
        systemd has started it again."""
        name, before = self._write({**command, "id": identity}), self.property("MainPID")
        self.machine.run(
            f"storage-agent submit --no-wait {name} & until {when}; do sleep 0.02; done; kill -9 {before}; wait; rm {name}"
        )
        self.machine.until(
            f"systemctl is-active {UNIT} && test $(systemctl show -p MainPID --value {UNIT}) != {before}"
        )

    def answer(self, identity: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.machine.run(f"storage-agent commands show --json {identity}"))
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.machine.run("storage-agent status --json"))
        return found

    def property(self, name: str) -> str:
        """Of the unit, as systemd knows it."""
        return self.machine.run(f"systemctl show -p {name} --value {UNIT}")

    def log(self) -> str:
        return self.machine.tried(f"journalctl -u {UNIT} -o cat --no-pager | tail -n 40")[1]

    def _write(self, command: dict[str, Any]) -> str:
        name = f"/run/command-{next(_numbers)}.json"
        self.machine.put(name, json.dumps(command), mode="0600")
        return name
