"""Every metric of the agent, defined once: name, unit, labels and what it means.

Labels take values from small fixed sets only. Command ids, store names, paths and anything else that clients choose never
become labels: they would grow without bound and would show to everybody who may look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from stores.errors import StoreError

if TYPE_CHECKING:  # what the cache stands on is only imported where there is one
    from stores.cache.cache import Outcome
    from stores.cache.claims import Counts
    from stores.cache.ledger import Statistics
    from stores.cache.pool import Pool
    from stores.cache.writeback.queue import Figures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COMMAND_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)  # a no-op to a template of terabytes
_REQUEST_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 10, 60)
_WAIT_BUCKETS = (0.01, 0.1, 1, 5, 15, 60, 300, 1800)
_FILL_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)
CACHE_INTERVAL_S = 5.0
_LAG_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2)
LAG_INTERVAL_S = 0.5


class Metrics:
    """One registry with everything in it; nothing of prometheus_client's global registry is used."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.build = Info("storage_agent_build", "Version of the agent.", registry=self.registry)
        self.commands_accepted = Counter(
            "storage_agent_commands_accepted",
            "Commands journalled, by command name.",
            ["command"],
            registry=self.registry,
        )
        self.commands_finished = Counter(
            "storage_agent_commands_finished",
            "Commands with a recorded outcome, by command name, final state, and kind of error (empty on success).",
            ["command", "state", "kind"],
            registry=self.registry,
        )
        self.command_seconds = Histogram(
            "storage_agent_command_seconds",
            "Time from acceptance to outcome, by command name.",
            ["command"],
            buckets=_COMMAND_BUCKETS,
            registry=self.registry,
        )
        self.commands_waiting = Gauge(
            "storage_agent_commands_waiting",
            "Commands accepted and not yet running.",
            registry=self.registry,
        )
        self.commands_running = Gauge(
            "storage_agent_commands_running", "Commands that run now.", registry=self.registry
        )
        self.bytes_done = Counter(
            "storage_agent_progress_bytes",
            "Bytes that commands have worked through, as their progress reports it.",
            registry=self.registry,
        )
        self.http_requests = Counter(
            "storage_agent_http_requests",
            "Requests answered, by route (its template), method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.http_seconds = Histogram(
            "storage_agent_http_request_seconds",
            "Time to answer a request, by route. Event streams and waiting submissions are not in it.",
            ["route"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.mount_calls_hanging = Gauge(
            "storage_agent_mount_calls_hanging",
            "Calls that hang in mounts of NFS now.",
            registry=self.registry,
        )
        self.link_ready = Gauge(
            "storage_agent_link_ready",
            "Whether a management server has taken this agent in, by its role.",
            ["role"],
            registry=self.registry,
        )
        self.http_streams = Gauge(
            "storage_agent_http_event_streams", "Event streams that are open now.", registry=self.registry
        )
        self.loop_lag = Histogram(
            "storage_agent_event_loop_lag_seconds",
            "How much later than asked the event loop woke a sleeper.",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        self.cache = CacheMetrics(self.registry)
        self.uploads = UploadMetrics(self.registry)

    def queue_from(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        """Read the two gauges from their source whenever somebody scrapes."""
        self.commands_waiting.set_function(waiting)
        self.commands_running.set_function(running)

    def render(self) -> bytes:
        """The Prometheus text format, of type `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    async def watch_loop(self) -> None:
        """Measure the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.loop_lag.observe(max(0.0, loop.time() - due))


class CacheMetrics:
    """What the cache does (`stores.cache.cache.CacheObserver`), and how its pools are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._told: dict[Counter, int] = {}
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.requests = counter(
            "storage_agent_cache_requests",
            "Requests to the cache, by outcome: hit, miss, join (somebody else was fetching it), bypass.",
            ["outcome"],
        )
        self.waits = Histogram(
            "storage_agent_cache_wait_seconds",
            "Time that requests stood in line for room, granted or not.",
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self.fill_seconds = Histogram(
            "storage_agent_cache_fill_seconds",
            "Time from the beginning of a fill until its object was published, by pool.",
            ["pool"],
            buckets=_FILL_BUCKETS,
            registry=registry,
        )
        self.bytes_filled = counter(
            "storage_agent_cache_filled_bytes", "Bytes of objects that were filled in, by pool.", ["pool"]
        )
        self.limit = gauge(
            "storage_agent_cache_limit_bytes", "What entries and reservations may take, by pool.", ["pool"]
        )
        self.used = gauge("storage_agent_cache_used_bytes", "What entries take on disk, by pool.", ["pool"])
        self.reserved = gauge("storage_agent_cache_reserved_bytes", "What fills have reserved, by pool.", ["pool"])
        self.pinned = gauge("storage_agent_cache_pinned_bytes", "What pinned entries take, by pool.", ["pool"])
        self.dirty = gauge("storage_agent_cache_dirty_bytes", "What no store has yet, by pool.", ["pool"])
        self.entries = gauge("storage_agent_cache_entries", "Entries, by pool.", ["pool"])
        self.waiting = gauge(
            "storage_agent_cache_waiting", "Requests that stand in line for room now, by pool.", ["pool"]
        )
        self.sick = gauge("storage_agent_cache_pool_sick", "1 while the pool is sick and bypassed, by pool.", ["pool"])
        self.strays = gauge(
            "storage_agent_cache_stray_bytes",
            "Files in the pool's directory that are not the cache's, by pool.",
            ["pool"],
        )
        self.evictions = counter(
            "storage_agent_cache_evictions", "Entries that went, by pool and reason.", ["pool", "reason"]
        )
        self.quarantined = counter(
            "storage_agent_cache_quarantined", "Entries that did not prove themselves, by pool.", ["pool"]
        )
        self.lease_losses = counter(
            "storage_agent_cache_lease_losses", "Times that this process was taken for dead, by pool.", ["pool"]
        )
        self.ailments = counter("storage_agent_cache_ailments", "Times that a pool turned sick, by pool.", ["pool"])

    def requested(self, store: str, outcome: Outcome) -> None:
        self.requests.labels(outcome.value).inc()

    def waited(self, seconds: float) -> None:
        self.waits.observe(seconds)

    def filled(self, pool: str, count: int, seconds: float) -> None:
        self.fill_seconds.labels(pool).observe(seconds)
        self.bytes_filled.labels(pool).inc(count)

    async def watch(self, pool: Pool) -> None:
        """Look at a pool again and again until cancelled, so that a scrape never waits for a disk."""
        from stores.cache.ledger import statistics

        while True:
            self._count(pool.name, pool.counts)
            try:
                self._measure(pool.name, await pool.transact(partial(statistics, pool=pool.name)))
            except StoreError:  # whatever it is, the numbers are missing, and the agent goes on
                self.sick.labels(pool.name).set(1)
            else:
                self.sick.labels(pool.name).set(0)
            await asyncio.sleep(CACHE_INTERVAL_S)

    def _measure(self, pool: str, now: Statistics) -> None:
        self.limit.labels(pool).set(now.limit)
        self.used.labels(pool).set(now.used)
        self.reserved.labels(pool).set(now.reserved)
        self.pinned.labels(pool).set(now.pinned)
        self.dirty.labels(pool).set(now.dirty)
        self.entries.labels(pool).set(now.entries)
        self.waiting.labels(pool).set(now.waiting)

    def _count(self, pool: str, counts: Counts) -> None:
        for reason, total in counts.evictions.items():
            self._rise(self.evictions.labels(pool, reason.value), total)
        self._rise(self.quarantined.labels(pool), counts.quarantined)
        self._rise(self.lease_losses.labels(pool), counts.lease_losses)
        self._rise(self.ailments.labels(pool), counts.ailments)
        self.strays.labels(pool).set(counts.stray_bytes)

    def _rise(self, counter: Counter, total: int) -> None:
        """The pool counts by itself: take over what came since the last look."""
        counter.inc(total - self._told.get(counter, 0))
        self._told[counter] = total


class UploadMetrics:
    """How the uploads are getting on (`stores.cache.writeback.queue.Figures`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.uploads = gauge("storage_agent_uploads", "Uploads, by state.", ["state"])
        self.unstored = gauge("storage_agent_upload_unstored_bytes", "What this host has and no store has yet.")
        self.oldest = gauge("storage_agent_upload_oldest_seconds", "Age of the oldest upload that is not stored.")
        self.breakers = gauge(
            "storage_agent_upload_breakers", "Stores that are left alone (open) or tried again (half-open).", ["state"]
        )
        self.attempts = counter("storage_agent_upload_attempts", "Attempts to upload.")
        self.failures = counter("storage_agent_upload_failures", "Attempts that failed.")
        self.stored = counter("storage_agent_upload_stored", "Uploads that a store has confirmed.")
        self.sent = counter("storage_agent_upload_sent_bytes", "Bytes that stores have confirmed.")
        self.resumed = counter(
            "storage_agent_upload_resumed_bytes",
            "Bytes that an earlier attempt had sent, and that were not sent again.",
        )
        self._told: dict[Counter, int] = {}

    def measure(self, now: Figures) -> None:
        """Show these from now on."""
        self.unstored.set(now.unstored_bytes)
        self.oldest.set(now.oldest_s)
        for state, count in now.by_state.items():
            self.uploads.labels(state.value).set(count)
        breakers = [breaker.value for breaker in now.breakers.values()]
        for name in ("open", "half-open"):
            self.breakers.labels(name).set(breakers.count(name))
        for counter, total in (
            (self.attempts, now.attempts),
            (self.failures, now.failures),
            (self.stored, now.stored),
            (self.sent, now.sent_bytes),
            (self.resumed, now.resumed_bytes),
        ):
            counter.inc(total - self._told.get(counter, 0))
            self._told[counter] = total
