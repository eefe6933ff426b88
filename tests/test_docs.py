"""The pages say what the code does: every table, name, command and example in them is held against it, both ways."""

from __future__ import annotations

import ast
import importlib.util
import ipaddress
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from prometheus_client.metrics import MetricWrapperBase

from agent.cli import app
from agent.cli_exit import BY_RETRY, Exit
from agent.config import Config
from agent.config_load import section_model
from agent.failures import http_status
from agent.metrics import Metrics
from agent.transports.http_api.problems import RequestProblem
from agent.transports.http_api.routes import ROUTES
from hypervisors.contract import Operation
from hypervisors.images import qcow2
from stores import url_policy
from tests.error_classes import OUR_PACKAGES, error_classes
from tests.generate_docs import BLOCKS, block_names, generated
from tests.markdown import ROOT, Page, code, pages

PAGES = pages()
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


def test_every_operation_is_on_its_page() -> None:
    text = page("hypervisors").section("How a source is read").text
    assert [operation for operation in Operation if operation not in text] == []


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
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(words) <= targets, words


def check_python(words: list[str]) -> None:
    if words[0] == "-m" and words[1] != "venv":
        assert importlib.util.find_spec(words[1]) is not None, words


def check_pytest(words: list[str]) -> None:
    for word in words:
        assert (ROOT / word).exists(), word


CHECKS = {
    "storage-agent": check_storage_agent,
    ".venv/bin/storage-agent": check_storage_agent,
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
