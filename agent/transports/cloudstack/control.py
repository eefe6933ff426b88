"""The commands that a link answers by itself: about the connection, the servers, and the agent's certificate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agent.security import SecuritySetup
from agent.transports.cloudstack.identity import IdentityStore
from agent.transports.cloudstack.models import UnsupportedAnswer, WireAnswer, WireCommand
from agent.transports.cloudstack.models_session import (
    AgentControlAnswer,
    AgentControlCommand,
    CancelCommand,
    CleanupNetworkRulesCmd,
    MaintainAnswer,
    MaintainCommand,
    MigrateAgentConnectionAnswer,
    MigrateAgentConnectionCommand,
    ReadyAnswer,
    ReadyCommand,
    ServersCommand,
    SetupCertificateAnswer,
    SetupCertificateCommand,
    SetupKeystoreAnswer,
    SetupKeyStoreCommand,
    SetupMSListAnswer,
    SetupMSListCommand,
    ShutdownCommand,
)
from agent.transports.cloudstack.requests import Execute, Requests
from agent.transports.cloudstack.servers import Servers


class Control:
    """Before the role: what it does not answer goes to `execute`."""

    def __init__(self, servers: Servers, identity: IdentityStore, execute: Execute) -> None:
        self._servers = servers
        self._identity = identity
        self._execute = execute
        self.requests = Requests(self.execute)

    async def execute(self, command: WireCommand, within_s: float) -> WireAnswer:
        match command:
            case ReadyCommand():
                self._take(command.msHostList, command.avoidMsHostList, command)
                return ReadyAnswer(result=True)
            case SetupMSListCommand():
                self._take(command.msList, command.avoidMsList, command)
                return SetupMSListAnswer(result=True)
            case MigrateAgentConnectionCommand():
                self._take(command.msList, command.avoidMsList, command)
                return MigrateAgentConnectionAnswer(result=True)
            case MaintainCommand():
                return MaintainAnswer(result=True, willMigrate=True)
            case AgentControlCommand():
                return AgentControlAnswer(result=True)  # as of an agent in which nobody listens
            case CleanupNetworkRulesCmd():
                return WireAnswer(result=True, details="this agent makes no network rules, so none are left over")
            case ShutdownCommand():
                return WireAnswer(result=True)
            case CancelCommand():
                found = self.requests.cancel(command.sequence, only_ask=command.checkOnly)
                return WireAnswer(
                    result=found, details=None if found else "nothing that could be stopped has that number"
                )
            case SetupKeyStoreCommand(handleByAgent=True):
                request = await asyncio.to_thread(self._identity.request)
                return SetupKeystoreAnswer(result=True, csr=request.decode())
            case SetupCertificateCommand(handleByAgent=True):
                return await self._certificate(command)
            case SetupKeyStoreCommand() | SetupCertificateCommand():
                return UnsupportedAnswer(result=False, details="only for virtual routers, and this is none")
            case _:
                return await self._execute(command, within_s)

    def _take(
        self,
        listed: Sequence[str],
        avoid: Sequence[str],
        command: ReadyCommand | ServersCommand,
    ) -> None:
        self._servers.take(listed, avoid, command.lbAlgorithm, command.lbCheckInterval)

    async def _certificate(self, command: SetupCertificateCommand) -> WireAnswer:
        try:
            await asyncio.to_thread(
                self._identity.accept,
                command.certificate.encode(),
                command.caCertificates.encode(),
                command.privateKey if command.privateKey else None,
            )
        except SecuritySetup as error:
            return SetupCertificateAnswer(result=False, details=error.message)
        return SetupCertificateAnswer(result=True)
