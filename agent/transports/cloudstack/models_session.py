"""The commands and answers that a connection lives by: introduction, readiness, pings, leave, servers and certificates."""

from __future__ import annotations

from pydantic import Field

from agent.transports.cloudstack.models import API, WireAnswer, WireCommand
from stores.secret import Secret

_CA = "org.apache.cloudstack.ca"
_LB = "org.apache.cloudstack.agent.lb"

# ----------------------------------------------------------------------------------------------- introduction


class StartupAnswer(WireAnswer):
    """`hostId` is 0 in the first one; the real id comes with ReadyCommand. `pingInterval` in seconds."""

    java = f"{API}.StartupAnswer"
    hostId: int = 0
    hostName: str | None = None
    hostUuid: str | None = None
    pingInterval: int = 0


class StartupCommand(WireCommand):
    """com.cloud.agent.api.StartupCommand: who connects. `type` is a Host.Type. Only its subclasses are sent."""

    answered_by = StartupAnswer
    type: str
    dataCenter: str | None = None
    pod: str | None = None
    cluster: str | None = None
    guid: str | None = None
    name: str | None = None
    id: int | None = None
    version: str | None = None
    iqn: str | None = None
    publicIpAddress: str | None = None
    publicNetmask: str | None = None
    publicMacAddress: str | None = None
    privateIpAddress: str | None = None
    privateMacAddress: str | None = None
    privateNetmask: str | None = None
    storageIpAddress: str | None = None
    storageNetmask: str | None = None
    storageMacAddress: str | None = None
    agentTag: str | None = None
    resourceName: str | None = None
    gatewayIpAddress: str | None = None
    msHostList: str | None = None
    connectionTransferred: bool = False
    arch: str | None = None


class StartupRoutingCommand(StartupCommand):
    """A hypervisor host. `speed` is MHz."""

    java = f"{API}.StartupRoutingCommand"
    type: str = "Routing"
    cpuSockets: int | None = None
    cpus: int = 0
    speed: int = 0
    memory: int = 0
    dom0MinMemory: int = 0
    poolSync: bool = False
    supportsClonedVolumes: bool = False
    caps: str | None = None
    pool: str | None = None
    hypervisorType: str | None = None
    hypervisorVersion: str | None = None
    hostDetails: dict[str, str] = Field(default={})
    hostTags: tuple[str, ...] = ()
    groupDetails: dict[str, str] = Field(default={})
    hostHealthCheckResult: bool | None = None


class StartupSecondaryStorageCommand(StartupCommand):
    """A secondary storage VM."""

    java = f"{API}.StartupSecondaryStorageCommand"
    type: str = "SecondaryStorage"


class ReadyAnswer(WireAnswer):
    java = f"{API}.ReadyAnswer"
    detailsMap: dict[str, str] = Field(default={})


class ReadyCommand(WireCommand):
    """The server has taken the host in, or, with `refusal`, has not."""

    java = f"{API}.ReadyCommand"
    answered_by = ReadyAnswer
    refusal: str | None = Field(default=None, alias="_details")
    dcId: int | None = None
    hostId: int | None = None
    hostUuid: str | None = None
    hostName: str | None = None
    msHostList: tuple[str, ...] = ()
    avoidMsHostList: tuple[str, ...] = ()
    lbAlgorithm: str | None = None
    lbCheckInterval: int | None = None  # seconds
    enableHumanReadableSizes: bool | None = None
    arch: str | None = None


# ------------------------------------------------------------------------------------------------------ pings


class PingCommand(WireCommand):
    """Sent by the agent."""

    java = f"{API}.PingCommand"
    hostType: str
    hostId: int
    outOfBand: bool = False


class PingRoutingCommand(PingCommand):
    """A host's. An absent report of guests says nothing about them; a wrong one would make the server act on it."""

    java = f"{API}.PingRoutingCommand"
    hostType: str = "Routing"
    gatewayAccessible: bool = Field(default=True, alias="_gatewayAccessible")
    vnetAccessible: bool = Field(default=True, alias="_vnetAccessible")
    hostVmStateReport: dict[str, str] | None = Field(default=None, alias="_hostVmStateReport")
    hostHealthCheckResult: bool | None = None


class PingStorageCommand(PingCommand):
    """A secondary storage VM's."""

    java = f"{API}.PingStorageCommand"
    hostType: str = "Storage"
    changes: dict[str, bool] = Field(default={})


class PingAnswer(WireAnswer):
    """`sendStartup`: the server wants the introduction again, on this connection."""

    java = f"{API}.PingAnswer"
    sendStartup: bool = False
    avoidMsList: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------- leaving and waiting


class ShutdownCommand(WireCommand):
    """From the server: the host is put away. From the agent: it leaves in order."""

    java = f"{API}.ShutdownCommand"
    reason: str | None = None
    detail: str | None = None
    removeHost: bool = False


class MaintainAnswer(WireAnswer):
    java = f"{API}.MaintainAnswer"
    willMigrate: bool = True


class MaintainCommand(WireCommand):
    """The host enters maintenance. Running work goes on."""

    java = f"{API}.MaintainCommand"
    answered_by = MaintainAnswer


class CancelCommand(WireCommand):
    """Stop what came with that sequence number; `checkOnly` only asks whether it could be stopped."""

    java = f"{API}.CancelCommand"
    sequence: int
    reason: str | None = None
    checkOnly: bool = False


class AgentControlAnswer(WireAnswer):
    java = f"{API}.AgentControlAnswer"


class AgentControlCommand(WireCommand):
    """com.cloud.agent.api.AgentControlCommand: for a part of an agent that listens to it. Only its subclasses are sent."""

    answered_by = AgentControlAnswer


class ConsoleAccessAuthenticationCommand(AgentControlCommand):
    """Whether somebody may see a guest's console."""

    java = f"{API}.ConsoleAccessAuthenticationCommand"
    host: str | None = Field(default=None, alias="_host")
    port: str | None = Field(default=None, alias="_port")
    vmId: str | None = Field(default=None, alias="_vmId")
    sid: Secret | None = Field(default=None, alias="_sid")
    ticket: Secret | None = Field(default=None, alias="_ticket")
    isReauthenticating: bool = Field(default=False, alias="_isReauthenticating")


class ConsoleProxyLoadReportCommand(AgentControlCommand):
    """How many look at consoles."""

    java = f"{API}.ConsoleProxyLoadReportCommand"
    proxyVmId: int = Field(default=0, alias="_proxyVmId")
    loadInfo: str | None = Field(default=None, alias="_loadInfo")


class CleanupNetworkRulesCmd(WireCommand):
    """Remove the network rules of guests that are gone, now and every `interval` seconds."""

    java = f"{API}.CleanupNetworkRulesCmd"
    interval: int = 0


# ----------------------------------------------------------------------------------------- servers to talk to


class SetupMSListAnswer(WireAnswer):
    java = f"{_LB}.SetupMSListAnswer"


class ServersCommand(WireCommand):
    """The management servers there are, the preferred one first. `lbCheckInterval` in seconds. Only its subclasses are sent."""

    msList: tuple[str, ...] = ()
    avoidMsList: tuple[str, ...] = ()
    lbAlgorithm: str | None = None
    lbCheckInterval: int | None = None


class SetupMSListCommand(ServersCommand):
    """Take that list."""

    java = f"{_LB}.SetupMSListCommand"
    answered_by = SetupMSListAnswer
    triggerHostLb: bool = False


class MigrateAgentConnectionAnswer(WireAnswer):
    java = f"{API}.MigrateAgentConnectionAnswer"


class MigrateAgentConnectionCommand(ServersCommand):
    """Answer, then connect to another server of the list."""

    java = f"{API}.MigrateAgentConnectionCommand"
    answered_by = MigrateAgentConnectionAnswer


# ----------------------------------------------------------------------------------------------- certificates


class SetupKeystoreAnswer(WireAnswer):
    """`csr`: a certificate request in PEM."""

    java = f"{_CA}.SetupKeystoreAnswer"
    csr: str | None = None


class SetupKeyStoreCommand(WireCommand):
    """Make a key pair and a certificate request. Without `handleByAgent` it is meant for a virtual router."""

    java = f"{_CA}.SetupKeyStoreCommand"
    answered_by = SetupKeystoreAnswer
    validityDays: int = 1
    keystorePassword: Secret | None = None
    handleByAgent: bool = False


class SetupCertificateAnswer(WireAnswer):
    java = f"{_CA}.SetupCertificateAnswer"


class SetupCertificateCommand(WireCommand):
    """PEM texts. `privateKey` is empty where a certificate request was used."""

    java = f"{_CA}.SetupCertificateCommand"
    answered_by = SetupCertificateAnswer
    certificate: str = ""
    privateKey: Secret = Secret("")
    caCertificates: str = ""
    handleByAgent: bool = False
