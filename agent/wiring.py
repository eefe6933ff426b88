"""Which parts the daemon is made of, and which setting goes to which part.

The only module of `agent` that names concrete classes of other layers.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cache_service import CacheService
from agent.commands import Answer
from agent.config import CachePool, Config
from agent.dispatcher import Dispatcher, Limits
from agent.execution import Execution
from agent.explain import explainer
from agent.journal import Journal, Retention
from agent.metrics import Metrics
from agent.tidying import tidy
from agent.transports.contract import AgentStatus, HostPoolStatus, Transport
from agent.transports.http_api.route import Api
from agent.transports.http_api.server import HttpApi
from agent.upload_service import UploadService
from agent.upload_watch import watch
from agent.version import VERSION
from hypervisors.contract import HypervisorHandler
from hypervisors.images.gate import GateLimits
from hypervisors.operations import Operations
from hypervisors.registry import handlers
from stores.leftovers import Leftovers
from stores.resolver import Resolver
from stores.secret import Secret
from stores.settings import CacheSettings, LvmSettings, SmbSettings, StoreSettings, UrlSettings
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine

if TYPE_CHECKING:  # what they stand on takes time to import, and is only needed where there is a cache, or a link
    from agent.transports.cloudstack.commands_desk import Commands as CommandDesk
    from agent.transports.cloudstack.contract import Role
    from agent.transports.cloudstack.staging_file import Zone
    from agent.transports.cloudstack.transport import Roles
    from hypervisors.hyperv.settings import HypervHostSettings
    from hypervisors.xen.config import XenPoolSettings
    from stores.cache.cache import Cache
    from stores.cache.database import Database
    from stores.cache.writeback.queue import UploadQueue
    from stores.mounts.mounts import Mounts


@dataclass(frozen=True)
class Parts:
    """Everything below the transports. Making it opens nothing; `aclose` gives back what was opened since."""

    config: Config
    engine: TransferEngine
    cache: Cache | None
    caching: CacheService
    queue: UploadQueue | None
    uploading: UploadService
    mounts: Mounts | None
    resolver: Resolver
    leftovers: Leftovers
    handlers: Sequence[HypervisorHandler]
    operations: Operations
    execution: Execution
    journal: Journal
    metrics: Metrics
    started_at: float

    def dispatcher(self) -> Dispatcher:
        """Over the journal, which has to be open."""
        agent = self.config.agent
        limits = Limits(agent.concurrency, agent.queue_limit, agent.default_deadline_s)
        dispatcher = Dispatcher(self.journal, self.execution, limits, observer=_Counting(self.metrics))
        self.metrics.build.info({"version": VERSION})
        self.metrics.queue_from(lambda: dispatcher.status().accepted, lambda: dispatcher.status().running)
        return dispatcher

    def transports(self, dispatcher: Dispatcher, passed: Sequence[socket.socket]) -> Sequence[Transport]:
        """`passed` are the listening sockets that systemd gave."""
        api = Api(
            commands=dispatcher,
            explain=explainer(self.operations, self.config.agent.hypervisor),
            cache=self.caching,
            uploads=self.uploading,
            status=self._status_of(dispatcher),
            metrics=self.metrics,
            request_timeout_s=self.config.api.request_timeout_s,
        )
        links = cloudstack_links(self.config, dispatcher, self.metrics) if self.config.cloudstack.servers else []
        return [HttpApi(api, self.config.api, passed=passed), *links]

    @asynccontextmanager
    async def cache_in_use(self) -> AsyncIterator[None]:
        """The cache, recovered at the beginning, and at the end given up to whoever comes next. All pools at once: one that
        hangs costs no more than its own deadline, and is sick then. What was staged goes on to its stores meanwhile."""
        if self.cache is None:
            yield
            return
        async with AsyncExitStack() as stack:
            for pool in self.cache.pools:
                stack.push_async_callback(pool.stop)
            async with asyncio.TaskGroup() as starting:
                for pool in self.cache.pools:
                    starting.create_task(pool.start())
            if self.queue is not None:
                stack.push_async_callback(self.queue.aclose)
                await self.queue.start()
            stack.push_async_callback(self.cache.aclose)
            yield

    def chores(self) -> Sequence[Coroutine[None, None, None]]:
        """What goes on beside the commands, each until it is cancelled."""
        chores = [self.metrics.watch_loop(), self.leftovers.run(), tidy(self.handlers)]
        if self.cache is not None:
            chores += [self.metrics.cache.watch(pool) for pool in self.cache.pools]
        if self.mounts is not None:
            chores.append(self.mounts.run())
        if self.queue is not None:
            chores.append(watch(self.queue, self.metrics.uploads, alarm_s=self.config.uploads.alarm_s))
        return chores

    async def aclose(self) -> None:
        for handler in self.handlers:
            await handler.aclose()
        await self.resolver.aclose()
        if self.mounts is not None:
            self.mounts.close()
        self.leftovers.close()
        await self.engine.aclose()

    def _status_of(self, dispatcher: Dispatcher) -> Callable[[], AgentStatus]:
        def status() -> AgentStatus:
            now = dispatcher.status()
            return AgentStatus(
                version=VERSION,
                hypervisor=self.config.agent.hypervisor.value,
                started_at=self.started_at,
                ready=now.accepting and now.journal_usable and not now.draining,
                accepting=now.accepting,
                draining=now.draining,
                journal_usable=now.journal_usable,
                waiting=now.accepted,
                running=now.running,
                queue_limit=now.queue_limit,
                concurrency=now.concurrency,
                host_pools=tuple(
                    HostPoolStatus(name=pool.name, coordinator=pool.coordinator, problem=pool.problem)
                    for handler in self.handlers
                    for pool in handler.host_pools()
                ),
            )

        return status


def build(config: Config, *, clock: Callable[[], float] = time.time) -> Parts:
    """`clock`: seconds since the epoch."""
    metrics = Metrics()
    transfer = config.transfer
    engine = TransferEngine(memory=transfer.memory, threads=transfer.threads, scratch=transfer.scratch_dir)
    cache = _cache(config, engine, metrics)
    caching = CacheService(cache)
    mounts = nfs_mounts(config)
    if mounts is not None:
        metrics.mount_calls_hanging.set_function(lambda: sum(mounts.hanging.values()))
    resolver = Resolver(store_settings(config), engine, cache=cache, mounts=mounts)
    queue = _queue(config, cache, resolver)
    leftovers = Leftovers(config.agent.state_dir / "writes", open_store=resolver.store)
    resolver.note_in(leftovers)
    uploading = UploadService(queue, cache.pools if cache is not None else ())
    limits = GateLimits(virtual_size=config.images.max_virtual_size)
    by_type = handlers(
        engine,
        ToolRunner(),
        config.agent.runtime_dir,
        limits,
        libvirt_uri=None if config.kvm.libvirt_uri == "none" else config.kvm.libvirt_uri,
        xen=xen_pools(config),
        hyperv=hyperv_hosts(config),
        shares=resolver.store,
    )
    operations = Operations(resolver, by_type, engine, clock, limits)
    retention = Retention(config.agent.retention_s, config.agent.retention_count)
    return Parts(
        config=config,
        engine=engine,
        cache=cache,
        caching=caching,
        queue=queue,
        uploading=uploading,
        mounts=mounts,
        resolver=resolver,
        leftovers=leftovers,
        handlers=tuple(by_type.values()),
        operations=operations,
        execution=Execution(operations, config.agent.hypervisor, caching, uploading),
        journal=Journal(config.agent.state_dir, retention=retention, clock=clock),
        metrics=metrics,
        started_at=clock(),
    )


def cloudstack_links(config: Config, dispatcher: Dispatcher, metrics: Metrics) -> Sequence[Transport]:
    """Imported where there are management servers to talk to: it takes time."""
    from agent.transports.cloudstack.trace import LogWatcher
    from agent.transports.cloudstack.transport import CloudStackLinks

    roles = cloudstack_roles(config, dispatcher, healthy=lambda: dispatcher.status().accepting)

    def watcher(role: str) -> LogWatcher:
        return LogWatcher(role, metrics.link_ready.labels(role).set)

    return [CloudStackLinks(config.cloudstack, config.agent.state_dir, roles, watcher)]


def cloudstack_roles(config: Config, commands: CommandDesk, *, healthy: Callable[[], bool]) -> Roles:
    """What the agent is to a management server, each role over a desk of its own."""
    from agent.transports.cloudstack.commands_desk import Desk
    from agent.transports.cloudstack.roles.host import Load, read_machine
    from agent.transports.cloudstack.roles.identity import Identity
    from agent.transports.cloudstack.roles.routing import RoutingRole
    from agent.transports.cloudstack.roles.secondary import SecondaryRole
    from agent.transports.cloudstack.staging import StagingDesk

    zone = staging_zone(config)

    def desk() -> Desk:
        return Desk(commands) if zone is None else StagingDesk(commands, zone)

    def made(host: Identity, storage: Identity) -> Sequence[Role]:
        roles: list[Role] = []
        for name in dict.fromkeys(config.cloudstack.roles):
            if name == "routing":
                load, hypervisor = Load(time.monotonic), config.agent.hypervisor.value
                roles.append(RoutingRole(host, desk(), read_machine(), load, hypervisor=hypervisor, healthy=healthy))
            else:
                roles.append(SecondaryRole(storage, desk()))
        return roles

    return made


def staging_zone(config: Config) -> Zone | None:
    """What `cloudstack.staging` is about, None where it names no store. Reads its file; `SecuritySetup` says what is wrong with
    that."""
    from agent.transports.cloudstack.staging_file import read_zone
    from stores.backends.s3_config import s3_config

    section, settings = config.cloudstack, store_settings(config)
    if section.staging_file is None:
        return None
    return read_zone(section.staging_file, section.staging, lambda to: s3_config(to, settings).id)


def store_settings(config: Config) -> StoreSettings:
    """What the configuration says about stores, in their own terms."""
    transfer, urls = config.transfer, config.urls
    return StoreSettings(
        roots=config.pools.roots,
        mount_root=config.pools.mount_root,
        nfs_mounts=config.pools.nfs_mounts,
        notes_dir=config.agent.state_dir / "notes",
        runtime_dir=config.agent.runtime_dir,
        file_mode=int(config.pools.file_mode, 8),
        urls=UrlSettings(
            allow_http=urls.allow_http,
            allow_networks=urls.allow_networks,
            ports=urls.ports,
            max_redirects=urls.max_redirects,
            external_fetch=urls.external_fetch,
        ),
        cache=CacheSettings(
            prefer=frozenset(config.cache.prefer),
            wait_s=config.cache.wait_s,
            preferred_wait_s=config.cache.preferred_wait_s,
        ),
        lvm=LvmSettings(groups=frozenset(config.lvm.groups), thin_pools=config.lvm.thin_pools, wipe=config.lvm.wipe),
        smb=SmbSettings(
            encryption=config.smb.encryption,
            authentication=config.smb.authentication,
            credentials=config.smb.credentials,
        ),
        rbd_keyrings=config.rbd.keyrings,
        ca_file=config.tls.ca_file,
        connect_timeout=transfer.connect_timeout_s,
        read_timeout=transfer.read_timeout_s,
        connections=transfer.connections,
        attempts=transfer.attempts,
    )


def nfs_mounts(config: Config) -> Mounts | None:
    """What the agent mounts itself; None where that is done for it. Mounts nothing yet."""
    section = config.nfs
    if section.mounting == "host":
        return None
    from agent.mounting import AskedMounter, ToolMounter
    from stores.mounts.mounts import Mounts

    mounter = ToolMounter(ToolRunner()) if section.mounting == "agent" else AskedMounter(section.mounter)
    return Mounts(mounter, config.pools.mount_root, options=section.options, exports=section.exports)


def xen_pools(config: Config) -> Sequence[XenPoolSettings]:
    """What the configuration says about pools of XenServer hosts, in their own terms. Reads no password."""
    if not config.xen.pools:
        return ()
    from agent.originator import originator
    from hypervisors.xen.config import XenPoolSettings
    from hypervisors.xen.hosts import parse_host

    ours = config.xen.originator or originator(config.agent.state_dir)
    return [
        XenPoolSettings(
            name=pool.name,
            hosts=tuple(parse_host(host, pool.fingerprints.get(host)) for host in pool.hosts),
            user=pool.user,
            password=pool.password_file or Secret(""),  # a socket of XAPI asks for none
            originator=ours,
            ca_file=pool.ca_file,
            connect_timeout_s=pool.connect_timeout_s,
            call_timeout_s=pool.call_timeout_s,
            head_timeout_s=pool.attach_timeout_s,
            stall_timeout_s=pool.stall_timeout_s,
            grace_s=pool.grace_s,
            lock_s=pool.lock_s,
            verify_imports=pool.verify_imports,
        )
        for pool in config.xen.pools
    ]


def hyperv_hosts(config: Config) -> Sequence[HypervHostSettings]:
    """What the configuration says about Hyper-V hosts, in their own terms. Reads no password."""
    if not config.hyperv.hosts:
        return ()
    from hypervisors.hyperv.endpoint import Auth, Endpoint
    from hypervisors.hyperv.settings import HypervHostSettings

    return [
        HypervHostSettings(
            name=host.name,
            endpoint=Endpoint(
                address=host.address,
                auth=Auth(host.auth),
                port=host.port,
                user=host.user,
                password=host.password_file,
                certificate=host.certificate,
                key=host.key,
                ca_file=host.ca_file,
                fingerprint=bytes.fromhex(host.fingerprint) if host.fingerprint is not None else None,
                configuration=host.configuration,
            ),
            shares=host.shares,
        )
        for host in config.hyperv.hosts
    ]


def _cache(config: Config, engine: TransferEngine, metrics: Metrics) -> Cache | None:
    """The cache of the configuration's pools; opens nothing."""
    if not config.cache.pools:
        return None
    from stores.cache.cache import Cache
    from stores.cache.pool import Pool, PoolSettings

    pools = []
    for pool in config.cache.pools:
        settings = PoolSettings(
            name=pool.name,
            directory=pool.directory,
            limit=pool.limit,
            leave_free=pool.leave_free,
            file_mode=int(pool.mode, 8),
            high=pool.high,
            low=pool.low,
            max_idle_s=pool.max_idle_s,
            max_age_s=pool.max_age_s,
            lease_s=pool.lease_s,
        )
        pools.append(Pool(settings, _ledger(pool)))
    return Cache(pools, engine, observer=metrics.cache)


def _queue(config: Config, cache: Cache | None, resolver: Resolver) -> UploadQueue | None:
    """Over the cache's pools; opens nothing."""
    if cache is None:
        return None
    from stores.cache.settings import WritebackSettings
    from stores.cache.writeback.queue import UploadQueue

    uploads = config.uploads
    settings = WritebackSettings(
        unstored_share=uploads.unstored_share,
        concurrency=uploads.concurrency,
        large=uploads.large,
        first_retry_s=uploads.first_retry_s,
        last_retry_s=uploads.last_retry_s,
        breaker_failures=uploads.breaker_failures,
        first_probe_s=uploads.first_probe_s,
        last_probe_s=uploads.last_probe_s,
    )
    credentials = config.agent.state_dir / "credentials"
    queue = UploadQueue(cache.pools, settings, credentials=credentials, open_store=resolver.store)
    resolver.upload_through(queue)
    return queue


def _ledger(pool: CachePool) -> Database:
    if pool.database is not None:
        from agent.ledger_file import LedgerFromFile

        return LedgerFromFile(pool.database, pool.name)
    from stores.cache.directory import LEDGER
    from stores.cache.sqlite import SqliteDatabase

    return SqliteDatabase(pool.directory / LEDGER)


class _Counting:
    """The dispatcher's events as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def accepted(self, command: str) -> None:
        self._metrics.commands_accepted.labels(command).inc()

    def finished(self, answer: Answer) -> None:
        kind = answer.error.kind if answer.error is not None else ""
        self._metrics.commands_finished.labels(answer.command, answer.state.value, kind).inc()
        self._metrics.command_seconds.labels(answer.command).observe(
            (answer.finished_at or answer.accepted_at) - answer.accepted_at
        )

    def advanced(self, count: int) -> None:
        self._metrics.bytes_done.inc(count)
