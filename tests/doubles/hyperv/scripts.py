"""The scripts that the host knows, by the digest of their text.

A script that is changed is not known here until somebody has looked at what it does now, made the double do the same, and
written its new digest down: `python -m tests.doubles.hyperv.digests` prints them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.doubles.hyperv.commands_disks import DiskCommands, signed
from tests.doubles.hyperv.commands_machines import MachineCommands
from tests.doubles.hyperv.faults import Faults
from tests.doubles.hyperv.model import Model
from tests.doubles.hyperv.shells import ScriptEnded
from tests.doubles.hyperv.vhds import VhdError

KNOWN = {
    "attach-disk": "08d2c5665d86a5f0ce56cf27aac07d9c75dddd050091c71d3b0d77c0f6f0f9b3",
    "delete-file": "92cbddc69fab390c70b00ce917ed5f95d32a07c8adc717625cef29b623b71dff",
    "detach-disk": "e80fcfa1ebf53053013689599957a85ece90abdbf8ad2e806fe6d2d18d43f8ca",
    "find-machines": "30c73bfba6e91bded4aaa877db32269148acaabcb3fc3c959ee7ff2a50149c7d",
    "get-checkpoints": "a980a18e9379a8b38d1f41b3b63af6cc986e9c5ecb42ec7d48225460f20f8192",
    "get-disks": "f7d3e515c0d34ba695384eab204ca14aa9d2ac3c373b094a0663f4542a557991",
    "get-file": "e91332b74b5fee38111de57b2ae2d79d9272a36cd666bbfcf4655dbb8623e8c8",
    "get-host": "a680a663e5973a3736ac203b41cacb0257af3ae19ba8b78aab9f63316788fa6d",
    "get-job": "9e7144eb0b16ccc98bcac6039f19655098a4989a50ce26f5d9b4344cd828f07b",
    "get-operations": "86135c8641c19e1e1940995c3291580280a03ac6e7b36537ad01b6b87fc6ea8b",
    "get-vhd": "fa2038cd051b72881006e0778e9633aba3f7afd12f27fa27d04a1b395a8ae550",
    "new-checkpoint": "44fcd7f7f36ecbb6414f1e1b7dd811e3e733362e2b6031f6d100636e4f2a9387",
    "new-vhd": "202d7b610328cfd1af36d21b676b9404bc2f0072f063bf5a74f07145b54e7c24",
    "remove-checkpoint": "408abbbe5f938be695d78ff0827d5b40466fc9a2af9c644b013b621e8a3a4976",
    "remove-operation": "f5c271f279ee6fa8a185e14cc6c8591f63facf37aa711257a33ac34b5009f0ac",
    "resize-vhd": "a751aaeb17556bcbf88a96f694835bdcec5524204dcb86bcabd6239ce97568c4",
    "restore-checkpoint": "4fad6b2ce19c11238f2e2bcdc0d6e11e6d9c5467e8648cf03a3f6fae989810ce",
    "set-dvd": "c9385a069fb35a248fe5cfd60bcb53e04c822dccdd069408c57dd2eec9e764c2",
    "set-vhd-parent": "b78d050dda053d9798a98f013d7a08c8aedc8c39a4a321891acf8cdf1e8ccaaf",
    "start-convert-vhd": "cc76ece0f0f0b82109fa527777f7046d9b4f80e06e0888b492279ae618946892",
    "start-merge-vhd": "fa81eb7db7f76a5593cccd4f0c7dad89cbbe8e7ceddff38a6e70eb59db80d40a",
    "test-vhd": "d4d1a2e0bcd75cb77ddb7e9db06ab207c9238c9a525b4b0ffec47a36a6333051",
}
PROBE = "$PSVersionTable.PSVersion.ToString()"
"""What clients other than ours may run."""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Scripts:
    """`unknown`: texts that nobody here knows, each of which has failed. `ran`: name and argument of those that were begun."""

    def __init__(self, model: Model, faults: Faults) -> None:
        self._faults = faults
        self._by_digest = {value: name for name, value in KNOWN.items()}
        disks, machines = DiskCommands(model), MachineCommands(model)
        self._commands: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {}
        for name in KNOWN:
            attribute = name.replace("-", "_")
            self._commands[name] = getattr(disks if hasattr(disks, attribute) else machines, attribute)
        self.unknown: list[str] = []
        self.ran: list[tuple[str, dict[str, Any]]] = []
        self.slow_s = 0.0

    async def run(self, text: str, parameters: dict[str, object]) -> str:
        if text == PROBE:
            return "5.1.20348.1"
        name = self._by_digest.get(digest(text))
        if name is None:
            self.unknown.append(text)
            raise ScriptEnded(
                "UnknownScript", "the double does not know this text: see tests/doubles/hyperv/scripts.py"
            )
        argument = json.loads(str(parameters["Json"]))
        self.ran.append((name, argument))
        fault = self._faults.of_script(name)
        if fault is not None and not fault.after:
            return _problem(fault.id, fault.hresult, "as told")
        await asyncio.sleep(self.slow_s)
        try:
            result = await self._commands[name](argument)
        except VhdError as error:
            return _problem(error.id, error.hresult, str(error))
        if fault is not None:
            await asyncio.Event().wait()
        return json.dumps({"ok": True, "result": result})


def _problem(identifier: str, hresult: int, text: str) -> str:
    told = {"ok": False, "id": identifier, "hresult": signed(hresult), "category": "NotSpecified", "message": text}
    return json.dumps(told)
