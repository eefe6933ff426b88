"""The contestants of `benchmarks.bytes` that are Python: `python -m benchmarks.bytes_client NAME URL DESTINATION ...`.

Each fetches one object from a server without signatures into a file, and reports its figures without its imports.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.harness import measured
from stores.contract import MiB, ObjectInfo
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpRangeReader, HttpTarget

PART = 8 * MiB
STREAMS = 4


class Source:
    """Where the object is: `http(s)://host:port/bucket/key`."""

    def __init__(self, url: str, size: int, ca_file: str | None) -> None:
        self.url, self.size, self.ca_file = url, size, ca_file
        parts = urlsplit(url)
        self.endpoint = f"{parts.scheme}://{parts.netloc}"
        self.host, self.port, self.tls = parts.hostname or "", parts.port or 0, parts.scheme == "https"
        self.path = parts.path
        self.bucket, _, self.key = parts.path[1:].partition("/")

    async def open(self, engine: TransferEngine) -> HttpRangeReader:
        context = ssl.create_default_context(cafile=self.ca_file) if self.tls else None
        target = HttpTarget(self.host, self.port, self.host, context, self.path)

        async def where() -> HttpTarget:
            return target

        return HttpRangeReader(engine, ObjectInfo(self.key, self.size), where)


async def ours(source: Source, destination: Path, digests: list[str]) -> None:
    engine = TransferEngine()
    await engine.fetch(await source.open(engine), destination, digests=digests)
    await engine.aclose()


async def ours_many(source: Source, destination: Path, count: int) -> Mapping[str, float]:
    """`count` transfers at once in one engine. Lag: how late a task wakes that sleeps 2 ms again and again."""
    engine = TransferEngine()
    lags: list[float] = []

    async def meter() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            lags.append(time.perf_counter() - began - 0.002)

    watching = asyncio.create_task(meter())
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            reader = await source.open(engine)
            group.create_task(engine.fetch(reader, destination.with_suffix(f".{number}")))
    watching.cancel()
    await engine.aclose()
    lags.sort()
    return {
        "lag_p50_ms": lags[len(lags) // 2] * 1000,
        "lag_p99_ms": lags[int(len(lags) * 0.99)] * 1000,
        "lag_max_ms": lags[-1] * 1000,
    }


async def with_obstore(source: Source, destination: Path) -> None:
    from obstore.store import S3Store

    store = S3Store(
        source.bucket,
        endpoint=source.endpoint,
        skip_signature=True,
        virtual_hosted_style_request=False,
        region="us-east-1",
        client_options={"allow_http": True, "allow_invalid_certificates": True},
    )
    with destination.open("wb") as file:
        os.ftruncate(file.fileno(), source.size)
        offsets = iter(range(0, source.size, PART))

        async def part_by_part() -> None:
            for offset in offsets:
                data = await store.get_range_async(source.key, start=offset, length=min(PART, source.size - offset))
                os.pwrite(file.fileno(), data, offset)

        await asyncio.gather(*(part_by_part() for _ in range(STREAMS)))


async def with_aiobotocore(source: Source, destination: Path) -> None:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session
    from botocore import UNSIGNED

    config = AioConfig(signature_version=UNSIGNED, s3={"addressing_style": "path"})
    async with get_session().create_client(
        "s3", endpoint_url=source.endpoint, region_name="us-east-1", config=config, verify=source.ca_file
    ) as client:
        with destination.open("wb") as file:
            os.ftruncate(file.fileno(), source.size)
            offsets = iter(range(0, source.size, PART))

            async def part_by_part() -> None:
                for offset in offsets:
                    last = min(offset + PART, source.size) - 1
                    answer = await client.get_object(
                        Bucket=source.bucket, Key=source.key, Range=f"bytes={offset}-{last}"
                    )
                    async with answer["Body"] as body:
                        data = await body.read()
                    await asyncio.to_thread(os.pwrite, file.fileno(), data, offset)

            await asyncio.gather(*(part_by_part() for _ in range(STREAMS)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=["ours", "many", "obstore", "aiobotocore"])
    parser.add_argument("url")
    parser.add_argument("destination", type=Path)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--ca-file")
    parser.add_argument("--digest", action="append", default=[])
    parser.add_argument("--count", type=int, default=8)
    options = parser.parse_args()
    source = Source(options.url, options.size, options.ca_file)
    destination: Path = options.destination

    def work() -> Mapping[str, float]:
        match options.name:
            case "ours":
                asyncio.run(ours(source, destination, options.digest))
            case "many":
                return asyncio.run(ours_many(source, destination, options.count))
            case "obstore":
                asyncio.run(with_obstore(source, destination))
            case "aiobotocore":
                asyncio.run(with_aiobotocore(source, destination))
        return {}

    # What a contestant imports late is imported here, before the clock starts.
    import obstore.store  # noqa: F401
    from aiobotocore import session  # noqa: F401

    measured(work)


if __name__ == "__main__":
    main()
