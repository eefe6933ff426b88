"""The pages say what the code does: every table, name, command and example in them is held against it, both ways."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import ipaddress
import json
import pkgutil
import re
import shlex
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import typer.main
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, TypeAdapter

from agent import commands
from agent.cli import app
from agent.cli_exit import BY_RETRY, Exit
from agent.config import Config
from agent.config_load import section_model
from agent.explain import EXPLAINABLE
from agent.failures import http_status
from agent.metrics import Metrics
from agent.transports.http_api.problems import RequestProblem
from agent.transports.http_api.routes import ROUTES
from hypervisors.contract import HypervisorHandler, ImageSpec, Operation, OperationUnsupported, Source
from hypervisors.images import qcow2
from stores import url_policy
from stores.backends.filesystem import FilesystemStore
from stores.contract import DataStore, Kind, RangeReader, Silent
from stores.errors import IntegrityError, NotFound, StorageError, StoreUnsupported
from stores.resolver import Via, negotiate
from stores.to import DataStoreTO, ImageFormat
from stores.transfer.digests import parse_checksum
from stores.transfer.engine import TransferEngine
from tests.agent_process import agent_host
from tests.generate_docs import BLOCKS, block_names, generated
from tests.markdown import ROOT, Page, code, pages

PAGES = pages()
OUR_PACKAGES = ("stores", "hypervisors", "agent")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def page(name: str) -> Page:
    return Page.of(f"docs/{name}.md")


def sources(*packages: str) -> Iterator[ast.Module]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ast.parse(path.read_text())


def calls(*packages: str) -> Iterator[ast.Call]:
    for tree in sources(*packages):
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def text_of(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


# ------------------------------------------------------------------------------------------------------ every page


@each_page
def test_generated_blocks_are_up_to_date(page: Page) -> None:
    assert page.text == generated(page.text), "write them anew: .venv/bin/python -m tests.generate_docs"


def test_every_generated_block_is_on_a_page() -> None:
    assert sorted(name for page in PAGES for name in block_names(page.text)) == sorted(BLOCKS)


@each_page
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        if link.startswith(("http://", "https://")):
            continue
        target, _, fragment = link.partition("#")
        path = page.path.parent / target if target else page.path
        assert path.exists(), link
        if fragment:
            assert fragment in Page(path, path.read_text()).anchors, link


@each_page
def test_files_that_are_named_exist(page: Page) -> None:
    named = re.compile(r"(?:agent|hypervisors|stores|tests|docs|benchmarks|systemd)/[a-z0-9_./-]*")
    for span in page.spans:
        if named.fullmatch(span):
            assert (ROOT / span).exists(), span


@each_page
def test_options_that_are_named_exist(page: Page) -> None:
    for span in page.spans:
        section, _, key = span.partition(".")
        if section in Config.model_fields and re.fullmatch(r"[a-z_]+", key):
            assert key in section_model(section).model_fields, span


@each_page
def test_data_in_code_blocks_parses(page: Page) -> None:
    for block in page.blocks("json"):
        json.loads(block)
    for block in page.blocks("toml"):
        context = {"environment": {"CREDENTIALS_DIRECTORY": "/run/credentials/storage-agent"}}
        Config.model_validate(tomllib.loads(block), context=context)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_limitations_come_first(path: Path) -> None:
    _, first, *_ = path.read_text().split("\n\n")
    assert "Limitations" in first or "not protected" in first


# -------------------------------------------------------------------------------------------------------- commands


def subcommands() -> dict[tuple[str, ...], set[str]]:
    """Every subcommand by its words, with its options."""
    found: dict[tuple[str, ...], set[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, (*words, name))
        if not hasattr(command, "commands"):
            names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            found[words] = {name for name in names if name.startswith("-")}

    walk(typer.main.get_command(app), ())
    return found


def check_storage_agent(words: list[str]) -> None:
    known = subcommands()
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    if words and words[0].startswith("--"):
        assert options in (["--version"], ["--help"])
        return
    name = next((tuple(words[:length]) for length in (2, 1) if tuple(words[:length]) in known), None)
    assert name is not None, words
    assert set(options) <= known[name] | {"--help"}, words


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(words) <= targets, words


def check_python(words: list[str]) -> None:
    if words[0] == "-m" and words[1] != "venv":
        assert importlib.util.find_spec(words[1]) is not None, words


def check_pytest(words: list[str]) -> None:
    for word in words:
        assert (ROOT / word).exists(), word


CHECKS = {
    "storage-agent": check_storage_agent,
    "make": check_make,
    ".venv/bin/python": check_python,
    "python": check_python,
    "python3": check_python,
    ".venv/bin/pytest": check_pytest,
}
NOT_OURS = {"systemctl", "journalctl", "curl", "install", ".venv/bin/pip"}


@each_page
def test_shell_commands_exist(page: Page) -> None:
    blocks = [*page.blocks("sh"), *page.blocks("")]
    lines = [line for block in blocks for line in block.splitlines() if shlex.split(line, comments=True)]
    for line in lines:
        first, *words = shlex.split(line.partition("|")[0], comments=True)
        if first.startswith(".ci/"):
            assert (ROOT / first).exists()
        elif first in CHECKS:
            CHECKS[first](words)
        else:
            assert first in NOT_OURS or line.startswith(" "), line  # drawings are indented
    for span in page.spans:
        first, *words = span.split()
        if first in CHECKS and words:
            CHECKS[first](words)


def test_the_command_line_is_described_in_full() -> None:
    described = {}
    for names, options, _ in page("operating").section("Command line").rows():
        words = code(names)[0].split()[1:]
        described[tuple(word for word in words if word.islower())] = set(code(options))
    assert described == subcommands()


def test_exit_codes() -> None:
    rows = page("errors").section("Exit codes").rows()
    assert [int(number) for number, _ in rows] == sorted(Exit)
    by_retry = {retry: int(number) for number, meaning in rows for retry in code(meaning)}
    assert by_retry == dict(BY_RETRY)


# ---------------------------------------------------------------------------------------------------------- errors


def error_classes() -> dict[str, type[StorageError]]:
    for name in OUR_PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    found: dict[str, type[StorageError]] = {}
    pending: list[type[StorageError]] = [StorageError]
    while pending:
        cls = pending.pop()
        if cls.__module__.split(".")[0] in OUR_PACKAGES:
            found[cls.__name__] = cls
        pending += cls.__subclasses__()
    return found


def test_errors_are_described_as_they_are() -> None:
    text = page("errors")
    bases = set(code(text.text.partition("Never seen by themselves")[2].partition("\n\n")[0]))
    only_local = {code(row[0])[0] for row in text.section("Only on the command line and at start").rows()}
    described = {code(row[0])[0]: row[1:3] for row in text.rows() if len(row) == 4}
    actual = {}
    for name, cls in error_classes().items():
        status = cls.status if issubclass(cls, RequestProblem) else http_status(cls)
        actual[name] = [cls.retry.value, "—" if name in only_local else str(status)]
    assert described == {name: told for name, told in actual.items() if name not in bases}
    assert bases <= set(actual)


# ------------------------------------------------------------------------------------------------------------- API


def test_routes() -> None:
    described = {code(route)[0]: role for route, role, _ in page("api").section("Routes").rows()}
    assert described == {f"{route.method} {route.path}": route.role.value for route in ROUTES}
    told = {code(route)[0]: set(code(what)) for route, _, what in page("api").section("Routes").rows()}
    for route in ROUTES:
        assert {parameter.name for parameter in route.parameters} <= told[f"{route.method} {route.path}"]


def command_models() -> dict[str, type[BaseModel]]:
    return {model.__name__: model for model in commands._Command.__subclasses__()}


def test_every_command_and_field_is_described() -> None:
    envelope = set(commands._Command.model_fields) | {"command"}
    named = {name for row in page("api").section("Sending a command").rows() for name in code(row[0])}
    assert named == envelope
    titles = set(re.findall(r"^### (\w+)$", page("api").section("Commands").text, re.MULTILINE))
    assert titles == set(command_models())
    for name, model in command_models().items():
        described = {field for row in page("api").section("Commands").section(name).rows() for field in code(row[0])}
        assert described == set(model.model_fields) - envelope, name


def test_every_field_of_an_answer_is_described() -> None:
    text = page("api")
    shown = set(text.spans) | set(re.findall(r'"(\w+)":', text.text))
    for model in (commands.Answer, commands.Failure, commands.ProgressReport, commands.PoolInfo, commands.VolumeStats):
        assert set(model.model_fields) <= shown
    assert {state.value for state in commands.State} <= set(text.section("Answers").spans)


def test_examples_in_the_prose_are_of_their_models() -> None:
    rows = page("api").section("Stores and data").rows()
    for kind, example, _ in rows:
        store = TypeAdapter(DataStoreTO).validate_json(code(example)[0])
        assert store.storeType == code(kind)[0]
    events = [span for span in page("api").section("Progress").spans if span.startswith("{")]
    assert [commands.Event.model_validate_json(event).id for event in events] == ["template-1"]


def test_every_example_request_is_valid() -> None:
    for block in page("api").blocks("http"):
        line, _, body = block.partition("\n\n")
        if line.startswith("POST /v1/commands") and "wiat" not in body:
            commands.COMMAND.validate_json(body)
        elif line.startswith("POST /v1/explain"):
            EXPLAINABLE.validate_json(body)


def test_examples_are_what_the_agent_answers() -> None:
    """Every request of the page, in order, to a real agent; the answer has what the page shows."""
    with agent_host() as host:
        image = host.root / "images" / "debian.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)

        def here(text: str) -> str:
            return text.replace("/srv/pool1", str(host.pool)).replace("/srv/images", str(image.parent))

        messages = [here(block) for block in page("api").blocks("http")]
        requests, answers = messages[::2], messages[1::2]
        used = set()
        for request, answer in zip(requests, answers, strict=True):
            line, _, body = request.partition("\n\n")
            method, target = line.split()
            used.add((method, re.sub(r"/v1/commands/[^/?]+", "/v1/commands/{id}", target).partition("?")[0]))
            status_line, _, shown = answer.partition("\n\n")
            told, text = exchange(host.socket, method, target, body)
            assert status_line == f"HTTP/1.1 {told} {HTTPStatus(told).phrase}", f"{line}: {text}"
            same(parsed(shown), parsed(text), line)
    described_elsewhere = {("GET", "/metrics"), ("GET", "/openapi.json")}
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
    (source,) = page(name).blocks("python")
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


# -------------------------------------------------------------------------------------------- metrics and log lines


def test_metrics() -> None:
    metrics = Metrics()
    types = dict(re.findall(r"^# TYPE (storage_agent_\w+) (\w+)$", metrics.render().decode(), re.MULTILINE))
    actual = {name: kind for name, kind in types.items() if not name.endswith("_created")}
    rows = {code(row[0])[0]: row[1:3] for row in page("operating").section("Metrics").rows()}
    assert {name: kind for name, (kind, _) in rows.items()} == actual
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase) and metric._labelnames:
            (name,) = (name for name in rows if name.removesuffix("_total") == metric._name)
            assert rows[name][1] == ", ".join(metric._labelnames), name


def logged() -> dict[str, tuple[set[str], set[str]]]:
    """Levels and fields of every event that our code logs."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for call in calls(*OUR_PACKAGES):
        event = text_of(call.args[0]) if call.args else None
        match call.func:
            case ast.Attribute(value=ast.Name(id="_log"), attr=level):
                levels = {level}
            case ast.Name(id="log"):
                levels = {"info", "debug"}
            case _:
                continue
        assert event is not None
        known = found.setdefault(event, (set(), set()))
        known[0].update(levels)
        known[1].update("exception" if word.arg == "exc_info" else str(word.arg) for word in call.keywords)
    return found


def test_log_events() -> None:
    _, events = page("operating").section("Logs").tables()
    level = re.compile(r"\b(?:debug|info|warning|error|critical)\b")
    described = {code(event)[0]: (set(level.findall(levels)), set(code(fields))) for event, levels, fields in events}
    assert described == logged()


# -------------------------------------------------------------------------------------------------------- security


def test_rules_of_the_gate() -> None:
    rules = {
        rule
        for call in calls("hypervisors")
        if isinstance(call.func, ast.Name) and call.func.id == "refuse" and (rule := text_of(call.args[0]))
    }
    rules |= {rule for _, rule, _ in qcow2._REFUSED_FEATURES}
    rows = page("security").section("The image gate").rows()
    assert sorted(rule for row in rows for rule in code(row[0])) == sorted(rules)


def test_refused_networks() -> None:
    text = page("security").section("URLs").text
    networks = {ipaddress.ip_network(found) for found in re.findall(r"[0-9a-f.:]+/\d+", text)}
    assert networks == {*url_policy._REFUSED4, *url_policy._REFUSED6, url_policy._GLOBAL_UNICAST6}


def test_roles() -> None:
    told, _ = page("security").section("Roles").tables()
    by_role: dict[str, set[str]] = {code(role)[0]: set(code(may)) - {"GET"} for role, may in told}
    actual: dict[str, set[str]] = {}
    for route in ROUTES:
        if route.method == "GET":
            assert route.role == "view"
        else:
            actual.setdefault(route.role.value, set()).add(f"{route.method} {route.path}")
    assert by_role == actual
