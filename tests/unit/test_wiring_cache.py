"""The cache as the configuration makes it: nothing opened before its time, several agents over one pool, metrics of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.config import Config
from agent.config_load import ConfigError, load
from agent.metrics import Metrics
from agent.wiring import Parts, build, store_settings
from stores.backends.memory import MemoryStore, SparseBytes
from stores.cache.cache import Outcome
from stores.cache.claims import Gone
from stores.contract import MiB
from tests.doubles.caches import make_pool, pool_settings
from tests.postgres import PASSWORD, Postgres


def configured(tmp_path: Path, **pool: Any) -> Config:
    (tmp_path / "state").mkdir(mode=0o700)
    directory = {"name": "local", "directory": str(tmp_path / "cache"), "limit": "64MiB", **pool}
    return Config.model_validate(
        {
            "agent": {"state_dir": str(tmp_path / "state"), "runtime_dir": "/tmp/sa-run"},
            "cache": {"pools": [directory], "prefer": ["s3"], "wait_s": 1},
        }
    )


async def served(parts: Parts, data: bytes) -> bytes:
    """What a request for an object of that content is served."""
    assert parts.cache is not None
    store = MemoryStore()
    content = SparseBytes()
    content.append(memoryview(data))
    store.publish("object", content, replace=True)
    info = await store.stat("object")
    async with parts.cache.whole(store, info, wait_s=5.0) as flight:
        return flight.result().copy.path.read_bytes()


async def test_making_it_opens_nothing(tmp_path: Path) -> None:
    parts = build(configured(tmp_path, database=str(tmp_path / "nobody-reads-this")))
    assert parts.cache is not None
    assert list(tmp_path.rglob("*")) == [tmp_path / "state"]
    await parts.aclose()


async def test_started_and_stopped(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o2750)  # made by the operator, for the hypervisor's group
    parts = build(configured(tmp_path, mode="0640"))
    async with parts.cache_in_use():
        assert await served(parts, b"content") == b"content"
        (file,) = (
            path for path in (tmp_path / "cache/objects").rglob("*") if path.suffix != ".json" and path.is_file()
        )
        assert file.stat().st_mode & 0o777 == 0o640
        assert all(parent.stat().st_mode & 0o2070 == 0o2050 for parent in file.parents[:2])
        (pool,) = await parts.caching.pools()
        assert (pool.ailment, pool.limit, pool.entries) == (None, 48 * MiB, 1)
        assert (tmp_path / "cache/ledger.sqlite").exists()
        assert (await parts.uploading.uploads()).uploads == []
        assert (tmp_path / "state/credentials").stat().st_mode & 0o777 == 0o700
    await parts.aclose()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_without_pools_there_is_no_cache(tmp_path: Path) -> None:
    parts = build(Config())
    async with parts.cache_in_use():
        assert parts.cache is None
        assert await parts.caching.pools() == []
        assert (await parts.caching.explain("x")).copies == []
        assert (await parts.uploading.uploads()).uploads == []
    await parts.aclose()


def test_settings_reach_the_stores(tmp_path: Path) -> None:
    settings = store_settings(configured(tmp_path)).cache
    assert (settings.prefer, settings.wait_s, settings.preferred_wait_s) == (frozenset({"s3"}), 1, 5)


async def test_two_agents_share_a_pool(tmp_path: Path, postgres: Postgres, postgres_database: str) -> None:
    url = tmp_path / "url"
    plain = postgres.url(postgres_database).replace("postgresql+asyncpg", "postgresql")
    url.write_text(plain.replace("@", f":{quote(PASSWORD)}@", 1))
    config = configured(tmp_path, database=str(url))
    one, other = build(config), build(config)
    async with one.cache_in_use(), other.cache_in_use():
        for parts in (one, other):
            (pool,) = await parts.caching.pools()
            assert pool.ailment is None
        assert await served(one, b"content" * 1000) == b"content" * 1000
        (entry,) = (await other.caching.entries("local")).entries
        assert (entry.ref, entry.size) == ("object", 7000)
        await other.caching.pin(entry.key, "by the other")
        (shown,) = await one.caching.show(entry.key)
        assert [pin.reason for pin in shown.pins] == ["operator: by the other"]
        await one.caching.unpin(entry.key)
    await one.aclose()
    await other.aclose()


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ([{"name": "a", "directory": "/a", "limit": "1MiB"}], "limit"),
        ([{"name": "a b", "directory": "/a", "limit": "1GiB"}], "name"),
        ([{"name": "a", "directory": "a", "limit": "1GiB"}], "absolute"),
        ([{"name": "a", "directory": "/a", "limit": "1GiB", "low": 0.9, "high": 0.8}], "low is 0.9"),
        ([{"name": "a", "directory": "/a", "limit": "1GiB", "mode": "0666"}], "mode"),
        ([{"name": "a", "directory": "/a", "limit": "1GiB", "size": 1}], "size"),
        ([{"name": "a", "directory": "/a", "limit": "1GiB"}] * 2, "a name of its own"),
        (
            [{"name": "a", "directory": "/a", "limit": "1GiB"}, {"name": "b", "directory": "/a/b", "limit": "1GiB"}],
            "lies in that of",
        ),
        ([{"name": "a", "directory": "/a"}], "limit"),
    ],
)
def test_pools_that_cannot_be(tmp_path: Path, pools: list[dict[str, Any]], says: str) -> None:
    file = tmp_path / "agent.toml"
    tables = "".join("[[cache.pools]]\n" + "".join(f"{k} = {v!r}\n" for k, v in pool.items()) for pool in pools)
    file.write_text(tables)
    with pytest.raises(ConfigError) as refused:
        load(file, {})
    assert says in refused.value.message
    assert str(file) in refused.value.message


def test_a_ledger_may_be_a_credential(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('[[cache.pools]]\nname = "s"\ndirectory = "/s"\nlimit = "1TiB"\ndatabase = "credential:ledger"\n')
    (pool,) = load(file, {"CREDENTIALS_DIRECTORY": "/run/c"}).config.cache.pools
    assert pool.database == Path("/run/c/ledger")
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY"):
        load(file, {})


# -------------------------------------------------------------------------------------------------------------- metrics


async def test_what_the_cache_tells_is_measured(tmp_path: Path) -> None:
    metrics = Metrics()
    pool = make_pool(pool_settings(tmp_path / "pool", room=8 * MiB))
    await pool.start()
    watching = asyncio.create_task(metrics.cache.watch(pool))
    metrics.cache.requested("s3:bucket", Outcome.HIT)
    metrics.cache.filled("pool", 1000, 0.5)
    metrics.cache.waited(0.2)
    pool.counts.evictions[Gone.ROOM] += 2

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"storage_agent_cache_{name}", labels)

    async with asyncio.timeout(20):
        while value("limit_bytes", pool="pool") != 8 * MiB:
            await asyncio.sleep(0.01)
    assert value("requests_total", outcome="hit") == 1
    assert value("filled_bytes_total", pool="pool") == 1000
    assert value("fill_seconds_count", pool="pool") == 1
    assert value("wait_seconds_count") == 1
    assert value("evictions_total", pool="pool", reason="room") == 2
    assert value("pool_sick", pool="pool") == 0
    watching.cancel()
    await asyncio.wait([watching])
    await pool.stop()
    families = text_string_to_metric_families(metrics.render().decode())
    assert all("s3:bucket" not in str(family.samples) for family in families)  # what clients name is no label
