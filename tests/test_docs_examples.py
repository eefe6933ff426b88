"""The pages of the API and of code to copy: their examples are sent to a real agent, and run."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from agent import commands
from agent.cache_models import EntryShown, PoolShown
from agent.explain import EXPLAINABLE
from agent.transports.http_api.routes import ROUTES
from agent.upload_models import Drained, Finished, UploadShown
from hypervisors.contract import HypervisorHandler, ImageSpec, Operation, OperationUnsupported, Source
from stores.backends.filesystem import FilesystemStore
from stores.contract import DataStore, Kind, RangeReader, Silent
from stores.errors import IntegrityError, NotFound, StoreUnsupported
from stores.resolver import Via, negotiate
from stores.to import DataStoreTO, ImageFormat
from stores.transfer.digests import parse_checksum
from stores.transfer.engine import TransferEngine
from tests.agent_process import agent_host
from tests.markdown import ROOT, Page, code

API = Page.of("docs/api.md")

# ------------------------------------------------------------------------------------------------------------- API


def test_routes() -> None:
    described = {code(route)[0]: role for route, role, _ in API.section("Routes").rows()}
    assert described == {f"{route.method} {route.path}": route.role.value for route in ROUTES}
    told = {code(route)[0]: set(code(what)) for route, _, what in API.section("Routes").rows()}
    for route in ROUTES:
        assert {parameter.name for parameter in route.parameters} <= told[f"{route.method} {route.path}"]


def command_models() -> dict[str, type[BaseModel]]:
    return {model.__name__: model for model in commands._Command.__subclasses__()}


def test_every_command_and_field_is_described() -> None:
    envelope = set(commands._Command.model_fields) | {"command"}
    named = {name for row in API.section("Sending a command").rows() for name in code(row[0])}
    assert named == envelope
    titles = set(re.findall(r"^### (\w+)$", API.section("Commands").text, re.MULTILINE))
    assert titles == set(command_models())
    for name, model in command_models().items():
        described = {field for row in API.section("Commands").section(name).rows() for field in code(row[0])}
        assert described == set(model.model_fields) - envelope, name


def test_every_field_of_an_answer_is_described() -> None:
    shown = set(API.spans) | set(re.findall(r'"(\w+)":', API.text))
    for model in (
        commands.Answer,
        commands.Failure,
        commands.ProgressReport,
        commands.PoolInfo,
        commands.VolumeStats,
        PoolShown,
        EntryShown,
        UploadShown,
        Finished,
        Drained,
    ):
        assert set(model.model_fields) <= shown
    assert {state.value for state in commands.State} <= set(API.section("Answers").spans)


def test_examples_in_the_prose_are_of_their_models() -> None:
    rows = API.section("Stores and data").rows()
    for kind, example, _ in rows:
        store = TypeAdapter(DataStoreTO).validate_json(code(example)[0])
        assert store.storeType == code(kind)[0]
    events = [span for span in API.section("Progress").spans if span.startswith("{")]
    assert [commands.Event.model_validate_json(event).id for event in events] == ["template-1"]


def test_every_example_request_is_valid() -> None:
    for block in API.blocks("http"):
        line, _, body = block.partition("\n\n")
        if line.startswith("POST /v1/commands") and "wiat" not in body:
            commands.COMMAND.validate_json(body)
        elif line.startswith("POST /v1/explain"):
            EXPLAINABLE.validate_json(body)


def test_examples_are_what_the_agent_answers() -> None:
    """Every request of the page, in order, to a real agent; the answer has what the page shows."""
    with agent_host(started=False) as host:
        image = host.root / "images" / "debian.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
        subprocess.run(["genisoimage", "-quiet", "-o", image.with_name("tools.iso"), ROOT / "docs"], check=True)
        cache = f'[[cache.pools]]\nname = "local"\ndirectory = "{host.root}/cache"\nlimit = "1GiB"\n'
        host.config.write_text(host.config.read_text() + cache)
        host.start()

        def here(text: str) -> str:
            for shown, actual in (("pool1", host.pool), ("images", image.parent), ("cache", host.root / "cache")):
                text = text.replace(f"/srv/{shown}", str(actual))
            return text

        messages = [here(block) for block in API.blocks("http")]
        requests, answers = messages[::2], messages[1::2]
        used = set()
        for request, answer in zip(requests, answers, strict=True):
            line, _, body = request.partition("\n\n")
            method, target = line.split()
            path = re.sub(r"/v1/commands/[^/?]+", "/v1/commands/{id}", target).partition("?")[0]
            used.add((method, path.replace("/pools/local/", "/pools/{pool}/")))
            status_line, _, shown = answer.partition("\n\n")
            told, text = exchange(host.socket, method, target, body)
            assert status_line == f"HTTP/1.1 {told} {HTTPStatus(told).phrase}", f"{line}: {text}"
            same(parsed(shown), parsed(text), line)
    described_elsewhere = {("GET", "/metrics"), ("GET", "/openapi.json")}
    described_elsewhere |= {(route.method, route.path) for route in ROUTES if "{key}" in route.path}
    described_elsewhere |= {
        (route.method, route.path) for route in ROUTES if route.path.startswith(("/v1/uploads/{", "/v1/events/{"))
    }
    assert used | described_elsewhere == {(route.method, route.path) for route in ROUTES}


def exchange(socket_path: Path, method: str, target: str, body: str) -> tuple[int, str]:
    """One request and its answer over a unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(socket_path))
        head = f"{method} {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n"
        connection.sendall(f"{head}\r\n{body}".encode())
        with HTTPResponse(connection, method=method) as response:
            response.begin()
            return response.status, response.read().decode()


def parsed(text: str) -> Any:
    """JSON; of an event stream its lines, with the data of each as JSON."""
    if text.startswith("{"):
        return json.loads(text)
    lines = (line.partition(": ") for line in text.strip().splitlines())
    return [(name, json.loads(value) if name == "data" else value) for name, _, value in lines]


VARIES = {
    *("accepted_at", "started_at", "finished_at", "lastModified", "capacityBytes", "availableBytes", "usedBytes"),
    *("physicalSize", "sizes", "details", "version"),
}
"""Fields whose values depend on the host, the time or the version; what else is shown is what comes."""


def same(shown: Any, told: Any, where: str) -> None:
    name = where.rpartition(".")[2]
    if isinstance(shown, dict) and isinstance(told, dict):
        assert set(shown) == set(told), where
        for key in shown:
            same(shown[key], told[key], f"{where}.{key}")
    elif isinstance(shown, list | tuple) and name not in VARIES:
        assert len(shown) == len(told), where
        for one, other in zip(shown, told, strict=True):
            same(one, other, where)
    elif name in VARIES:
        assert type(shown) is type(told), where
    else:
        assert shown == told, where


# -------------------------------------------------------------------------------------------------- code to copy


def example(name: str) -> dict[str, Any]:
    """The names that a page's Python code defines."""
    (source,) = Page.of(f"docs/{name}.md").blocks("python")
    names: dict[str, Any] = {"__name__": f"example_{name.replace('-', '_')}"}
    exec(compile(source, f"docs/{name}.md", "exec"), names)
    return names


async def test_the_store_to_copy_works() -> None:
    store: DataStore = example("adding-a-store")["DictStore"]({"a": b"0123456789", "b": b""})
    info = await store.stat("a")
    assert negotiate(store.id, store.offers(info), [Kind.NBD_EXPORT], ranges=True).via is Via.BRIDGE
    async with store.present(info, Kind.RANGE_READER) as reader:
        assert isinstance(reader, RangeReader)
        assert await reader.read(2, 5) == b"23456"
        with pytest.raises(IntegrityError):
            await reader.read(8, 5)
    with pytest.raises(NotFound):
        await store.stat("c")
    with pytest.raises(StoreUnsupported):
        await store.delete("a")


async def test_the_handler_to_copy_works(tmp_path: Path) -> None:
    engine = TransferEngine()
    handler: HypervisorHandler = example("adding-a-hypervisor")["RawHandler"](engine)
    store: DataStore = example("adding-a-store")["DictStore"]({"disk": bytes(range(256)) * 16})
    pool = FilesystemStore(tmp_path, engine, id="pool:example", allowed=[tmp_path])
    raw = ImageSpec(ImageFormat.RAW)
    info = await store.stat("disk")
    kind = handler.accepts(Operation.COPY_TEMPLATE, raw, raw).kinds[0]
    async with (
        aclosing(engine),
        store.present(info, kind) as reader,
        pool.write("v", Kind.LOCAL_PATH, token="t") as file,
    ):
        scratch = partial(pool.write, "scratch", Kind.LOCAL_PATH, token="t")
        checksum = parse_checksum("{SHA-256}" + hashlib.sha256(bytes(range(256)) * 16).hexdigest())
        await handler.copy(Source(reader, raw), file, raw, scratch=scratch, checksum=checksum, progress=Silent())
        await file.commit()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"v": bytes(range(256)) * 16}
    with pytest.raises(OperationUnsupported):
        handler.accepts(Operation.COPY_TEMPLATE, ImageSpec(ImageFormat.QCOW2), raw)
