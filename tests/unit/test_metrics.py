"""Metrics: defined once, readable by Prometheus, and without anything that a client chooses in their labels."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import LAG_INTERVAL_S, Metrics

AGENT = Path(__file__).parents[2] / "agent"
LABELS = {"command", "state", "kind", "route", "method", "status", "le", "version", "pool", "outcome", "reason"}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_what_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.queue_from(lambda: 4, lambda: 2)
    metrics.commands_accepted.labels("Copy").inc()
    metrics.http_requests.labels("/v1/commands/{id}", "GET", "200").inc()
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    own = {name: family for name, family in families.items() if name.startswith("storage_agent_")}
    assert {"storage_agent_commands_accepted", "storage_agent_commands_running", "process_open_fds"} <= families.keys()
    for name, family in own.items():
        assert family.documentation.endswith("."), name
        assert all(set(sample.labels) <= LABELS for sample in family.samples), name
    assert own["storage_agent_commands_waiting"].samples[0].value == 4


def test_metrics_are_defined_in_one_module_only() -> None:
    elsewhere = [
        path.name
        for path in AGENT.rglob("*.py")
        if path.name != "metrics.py" and "prometheus_client" in path.read_text()
    ]
    assert elsewhere == []


def test_two_agents_in_one_process_do_not_share_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.commands_accepted.labels("Copy").inc()
    assert value(other, "storage_agent_commands_accepted_total", command="Copy") is None


async def test_a_blocked_loop_shows() -> None:
    metrics = Metrics()
    task = asyncio.create_task(metrics.watch_loop())
    await asyncio.sleep(0)
    time.sleep(LAG_INTERVAL_S + 0.3)
    while not value(metrics, "storage_agent_event_loop_lag_seconds_count"):
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    lag = value(metrics, "storage_agent_event_loop_lag_seconds_sum")
    assert lag is not None
    assert lag > 0.25
