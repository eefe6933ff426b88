"""Every metric of the agent, defined once: name, unit, labels and what it means.

Labels take values from small fixed sets only. Command ids, store names, paths and anything else that clients choose never
become labels: they would grow without bound and would show to everybody who may look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COMMAND_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)  # a no-op to a template of terabytes
_REQUEST_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 10, 60)
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
        self.http_streams = Gauge(
            "storage_agent_http_event_streams", "Event streams that are open now.", registry=self.registry
        )
        self.loop_lag = Histogram(
            "storage_agent_event_loop_lag_seconds",
            "How much later than asked the event loop woke a sleeper.",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )

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
