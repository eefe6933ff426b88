"""Disks and ISOs of guests, and objects that are introduced and forgotten. Pure.

Whether this agent does anything with guests is its hypervisor's affair; where it does not, the command fails and says so.
"""

from __future__ import annotations

from agent import commands
from agent.commands import Answer, Command
from agent.transports.cloudstack.commands_route import Route
from agent.transports.cloudstack.commands_storage import done, made
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_objects import DiskMade
from agent.transports.cloudstack.models_storage import (
    AttachAnswer,
    AttachCommand,
    DetachAnswer,
    DetachCommand,
    DettachAnswer,
    DettachCommand,
    ForgetObjectCmd,
    IntroduceObjectAnswer,
    IntroduceObjectCmd,
)
from stores.errors import InvalidReference


def _guest(command: AttachCommand | DettachCommand) -> str:
    if not command.vmName:
        raise InvalidReference("a disk is attached to a guest, and none came with the command: vmName")
    return command.vmName


def _attach(command: AttachCommand) -> Command:
    """The server believes that the guest has what was attached: an ISO that would only become a file is refused."""
    return commands.Attach(disk=command.disk, vmName=_guest(command), insert=command.disk.type == "ISO")


def _attached(command: AttachCommand, answer: Answer) -> WireAnswer:
    return AttachAnswer(result=True, disk=_disk(answer))


def _detach(command: DettachCommand) -> Command:
    return commands.Dettach(disk=command.disk, vmName=_guest(command), waitDetachDevice=command.waitDetachDevice)


def _dettached(command: DettachCommand, answer: Answer) -> WireAnswer:
    return DettachAnswer(result=True, disk=_disk(answer))


def _detached(command: DetachCommand, answer: Answer) -> WireAnswer:
    return DetachAnswer(result=True, disk=_disk(answer))


def _disk(answer: Answer) -> DiskMade | None:
    disk = answer.disk
    if disk is None:
        return None
    return DiskMade(data=made(disk.data), diskSeq=disk.diskSeq, path=disk.path, type=disk.type)


def _introduce(command: IntroduceObjectCmd) -> Command:
    return commands.IntroduceObject(data=command.dataTO)


def _introduced(command: IntroduceObjectCmd, answer: Answer) -> WireAnswer:
    return IntroduceObjectAnswer(result=True, dataTO=made(answer.data))


def _forget(command: ForgetObjectCmd) -> Command:
    return commands.ForgetObject(data=command.dataTO)


ROUTES: dict[type[WireCommand], Route] = {
    AttachCommand: Route(_attach, _attached),
    DettachCommand: Route(_detach, _dettached),
    DetachCommand: Route(_detach, _detached),
    IntroduceObjectCmd: Route(_introduce, _introduced),
    ForgetObjectCmd: Route(_forget, done),
}
