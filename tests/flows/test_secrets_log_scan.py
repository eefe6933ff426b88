"""No secret leaves the agent: not in answers, logs, journal, records, metrics, explanations, errors or process lists."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.logs import formatter
from tests.agent_process import AgentHost, agent_host
from tests.doubles.fault_proxy import fault_proxy
from tests.secret_scan import LogScanner, forget_secret, found_in, register_secret, spellings
from tests.servers import S3Server, free_ports

DEBUG = """
[logs]
level = "debug"
format = "json"
[transfer]
attempts = 1
connect_timeout_s = 2
[uploads]
first_probe_s = 0.1
last_probe_s = 0.1
last_retry_s = 1
[[cache.pools]]
name = "local"
directory = "{directory}"
limit = "64MiB"
"""
PLANTED = {
    name: f"planted-{name}-9f1c+/Zq=2"
    for name in (
        "s3-key",
        "chap",
        "smb-password",
        "swift-key",
        "passphrase",
        "userinfo",
        "signature",
        "misplaced",
    )
}


@dataclass
class Everything:
    """All that came out of the agent, by where it was seen."""

    host: AgentHost
    seen: list[tuple[str, str]] = field(default_factory=list)

    def cli(self, *arguments: str | Path, stdin: str = "") -> int:
        for form in ((), ("--json",)):
            done = self.host(*arguments, *form, stdin=stdin)
            self.seen.append((f"storage-agent {arguments[0]}", done.out + done.err))
        return done.code

    def http(self, method: str, path: str, body: object = None) -> int:
        """One request over the socket, with everything that comes back, headers included."""
        with contextlib.closing(http.client.HTTPConnection("agent")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(self.host.socket))
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
            response = connection.getresponse()
            self.seen.append((f"{method} {path}", f"{response.getheaders()} {response.read().decode()}"))
            return response.status

    def processes(self) -> None:
        """Command lines and environments of the agent and whatever it runs now."""
        assert self.host.process is not None
        for pid in _family(self.host.process.pid):
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    self.seen.append((f"/proc/.../{name}", Path(f"/proc/{pid}/{name}").read_text(errors="replace")))

    def files(self) -> None:
        """The log, the journal and its side files, the cache and its ledger, sockets' names, and what lies beside the volumes:
        all but the one place where keys of stores are kept."""
        for directory in ("state", "run", "pools", "cache"):
            for path in (self.host.root / directory).rglob("*"):
                if path.parent == self.credentials:
                    continue
                content = path.read_bytes() if path.is_file() else b""
                self.seen.append((str(path.relative_to(self.host.root)), f"{path.name} {content.decode('latin-1')}"))
        self.seen.append(("agent.log", self.host.log.read_text()))

    @property
    def credentials(self) -> Path:
        return self.host.root / "state" / "credentials"

    def leaks(self, secrets: dict[str, str]) -> list[str]:
        return sorted(
            {
                f"{name} in {where}"
                for name, value in secrets.items()
                for spelling in spellings(value)
                for where, text in self.seen
                if spelling in text
            }
        )


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from _family(int(child))


def commands(host: AgentHost, server: S3Server, bucket: str) -> dict[str, dict[str, Any]]:
    """What succeeds, and what fails in every way in which a secret is at hand."""

    def template(store: dict[str, Any], path: str = "t.qcow2") -> dict[str, Any]:
        return {"type": "template", "path": path, "format": "QCOW2", "imageDataStore": store}

    def s3(**more: Any) -> dict[str, Any]:
        named = {"endPoint": server.endpoint, "bucketName": bucket, "accessKey": server.access_key}
        return {"storeType": "s3", **named, "secretKey": server.secret_key, **more}

    def copy(store: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
        return {"command": "Copy", "id": name, "source": template(store), "destination": host.volume(name), **more}

    closed = f"http://127.0.0.1:{free_ports(1)[0]}"
    pool = host.volume()["dataStore"]
    return {
        "good": copy(s3(), "good"),
        "wrong key": copy(s3(secretKey=PLANTED["s3-key"]), "wrong-key"),
        "no server": copy(s3(endPoint=closed, secretKey=PLANTED["s3-key"]), "no-server"),
        "no object": {**copy(s3(), "no-object"), "source": template(s3(), "none")},
        "smb": copy({"storeType": "nfs", "_url": f"cifs://h/share?user=u&password={PLANTED['smb-password']}"}, "smb"),
        "swift": copy(
            {"storeType": "swift", "url": closed, "account": "a", "userName": "u", "key": PLANTED["swift-key"]}, "swift"
        ),
        "userinfo": copy({"storeType": "image", "uri": f"https://u:{PLANTED['userinfo']}@h.example/x"}, "userinfo"),
        "signed": copy(
            {"storeType": "image", "uri": f"https://127.0.0.1/x?X-Amz-Signature={PLANTED['signature']}"}, "signed"
        ),
        "chap": {
            "command": "CreateStoragePool",
            "id": "chap",
            "pool": {**pool, "details": {"chap_secret": PLANTED["chap"]}},
        },
        "passphrase": {
            "command": "CreateObject",
            "id": "passphrase",
            "data": host.volume("luks", size=1 << 20, passphrase=PLANTED["passphrase"], encryptFormat="LUKS"),
        },
        "not valid": {**copy(s3(secretKey=[PLANTED["misplaced"]]), "not-valid"), "deadline_s": PLANTED["misplaced"]},
        "odd kind": copy({"storeType": PLANTED["misplaced"], "secretKey": PLANTED["s3-key"]}, "odd-kind"),
    }


@pytest.fixture(scope="module")
def everything(
    seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Everything, dict[str, int], dict[str, str]]]:
    """An agent at debug level after a working day: successes, failures, questions, kill -9, recovery, stop."""
    image = tmp_path_factory.mktemp("secrets") / "t.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"], check=True)
    bucket = "secret-scan"
    client = seaweed.client()
    client.create_bucket(Bucket=bucket)
    client.upload_file(str(image), bucket, "t.qcow2")
    client.close()
    with agent_host(started=False) as host:
        host.config.write_text(host.config.read_text() + DEBUG.format(directory=host.root / "cache"))
        host.start()
        all_ = Everything(host)
        asked = commands(host, seaweed, bucket)
        codes = {}
        for name, command in asked.items():
            codes[name] = all_.cli("submit", host.write(command))
            all_.http("POST", "/v1/commands?wait=20", {**command, "id": f"{command['id']}-2"})
            all_.cli("explain", host.write(command))
            all_.http("POST", "/v1/explain", command)
            all_.cli("commands", "show", str(command["id"]))
            all_.http("GET", f"/v1/commands/{command['id']}/events")
            all_.processes()
        upload = staged(all_, seaweed, bucket)
        about_uploads = ("/v1/uploads", f"/v1/uploads/{upload}", "/v1/events", "/v1/drain")
        for path in ("/v1/commands?limit=1000", *about_uploads, "/v1/status", "/metrics", "/openapi.json"):
            assert all_.http("GET", path) == 200
        all_.cli("commands", "ls")
        all_.cli("show-config")
        all_.cli("uploads", "ls")
        all_.cli("uploads", "show", upload)
        host.stop(signal.SIGKILL)
        all_.files()
        host.start()
        all_.http("GET", "/v1/commands?limit=1000")
        all_.http("GET", f"/v1/uploads/{upload}?wait=1")
        host.stop()
        all_.files()
        yield all_, codes, {**PLANTED, "the real S3 key": seaweed.secret_key}


def staged(all_: Everything, server: S3Server, bucket: str) -> str:
    """The id of an upload that goes on with its keys on disk: slowly, then with a wrong key, and then without its store."""
    host = all_.host
    snapshot = {"type": "snapshot", "path": "good/s", "dataStore": host.volume()["dataStore"]}
    with fault_proxy(server.port) as line:
        line.rate_up = 1000
        endpoint = f"http://127.0.0.1:{line.port}"
        store = {"storeType": "s3", "endPoint": endpoint, "bucketName": bucket, "accessKey": server.access_key}
        good, wrong = {**store, "secretKey": server.secret_key}, {**store, "secretKey": PLANTED["s3-key"]}
        backup = {"type": "snapshot", "path": "s", "dataStore": good}
        for command in (
            {"command": "CreateObject", "id": "snapshot", "data": snapshot},
            {"command": "Copy", "id": "staged", "durability": "staged", "source": snapshot, "destination": backup},
        ):
            assert all_.cli("submit", host.write(command)) == 0
        listing = {"command": "ListDataStoreObjects", "id": "named-wrong", "store": wrong}
        assert all_.cli("submit", host.write(listing)) == 4
        for subcommand in ("verify", "tree"):
            all_.cli("backups", subcommand, host.write({**backup, "dataStore": wrong}))
        all_.processes()
    upload = next(each for each in host("uploads", "ls", "--json").json["uploads"] if each["ref"] == "s")
    return str(upload["id"])


def test_the_day_was_what_it_should_have_been(everything: tuple[Everything, dict[str, int], dict[str, str]]) -> None:
    all_, codes, _ = everything
    assert codes["good"] == codes["passphrase"] == 0
    assert {name for name, code in codes.items() if code == 0} <= {"good", "chap", "passphrase"}
    log = all_.host.log.read_text()
    for logger in ("asyncio", "agent.transports", "agent.dispatcher"):
        assert f'"logger": "{logger}' in log, logger
    places = {where.split(" ")[0] for where, _ in all_.seen}
    assert {"storage-agent", "POST", "GET", "agent.log", "state/journal.sqlite3", "/proc/.../cmdline"} <= places


def test_no_secret_was_seen_anywhere(everything: tuple[Everything, dict[str, int], dict[str, str]]) -> None:
    all_, _, secrets = everything
    assert all_.leaks(secrets) == []


def test_no_signature_was_seen_anywhere(everything: tuple[Everything, dict[str, int], dict[str, str]]) -> None:
    """Presigned URLs and signed headers are credentials for as long as they live."""
    all_, _, _ = everything
    for where, text in all_.seen:
        for mark in ("X-Amz-Signature=", "Signature=", "X-Amz-Credential="):
            for piece in text.split(mark)[1:]:
                assert piece.startswith(("***", "%")), f"{mark} in {where}"


def test_files_with_commands_in_them_are_private(everything: tuple[Everything, dict[str, int], dict[str, str]]) -> None:
    host = everything[0].host
    for path in [host.root / "state", *(host.root / "state").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_keys_that_an_upload_needs_are_kept_in_one_place(
    everything: tuple[Everything, dict[str, int], dict[str, str]],
) -> None:
    all_ = everything[0]
    (kept,) = all_.credentials.iterdir()
    assert PLANTED["s3-key"] in kept.read_text()  # the last ones that a command came with
    assert "cache/ledger.sqlite" in {where for where, _ in all_.seen}


def test_what_botocore_says_at_debug_level_is_redacted(seaweed: S3Server) -> None:
    """The agent keeps botocore at info; this is what stands behind that, should somebody turn it up."""
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(formatter(console=False))
    log = logging.getLogger("botocore")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        client = seaweed.client()
        client.list_buckets()
        url = client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
        log.warning("will fetch %s", url)
        client.close()
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    text = output.getvalue()
    assert "StringToSign" in text
    assert not any(spelling in text for spelling in spellings(seaweed.secret_key))
    for signature in re.findall(r"Signature[=:](?:\\n|\s)*([^\s,&\"'\\]+)", text):
        assert signature == "***"
    assert "Signature=***" in text


# -------------------------------------------------------------------------------------------- the scanner itself


@pytest.mark.parametrize("spelling", sorted(spellings("hunter2/ the+secret")))
def test_a_logged_secret_is_found_in_every_spelling(spelling: str) -> None:
    scanner = LogScanner()
    name = "the scanner's own test"
    try:
        register_secret("hunter2/ the+secret", name)
        for logger, message in (("agent.x", f"secretKey={spelling}"), ("library", f"got {spelling}")):
            scanner.emit(logging.LogRecord(logger, logging.INFO, "", 1, message, None, None))
        assert scanner.take() == [f"{name} was logged by agent.x (INFO)", f"{name} was logged by library (INFO)"]
        scanner.emit(logging.LogRecord("agent.x", logging.INFO, "", 1, "nothing of it", None, None))
        assert scanner.take() == []
    finally:
        forget_secret(name)


def test_a_test_that_leaks_is_failed_by_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(
        "import logging, structlog\n"
        "from tests.secret_scan import register_secret\n"
        "SECRET = register_secret('hunter2-hunter2', 'the password')\n"
        "def test_quiet(): structlog.get_logger('agent.x').info('fine', password=3)\n"
        "def test_logs_it(): structlog.get_logger('agent.x').info('got', password=SECRET)\n"
        "def test_prints_it(): print(SECRET)\n"
        "def test_library_logs_it(): logging.getLogger('library').error('password=%s', SECRET)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.secret_scan", "-p", "no:cacheprovider", tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 failed, 2 passed" in done.stdout, done.stdout
    assert "the password was logged by agent.x (INFO)" in done.stdout
    assert "the password was printed (Captured stdout call)" in done.stdout
    assert "hunter2-hunter2" not in done.stdout


def test_what_is_too_short_to_search_for_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        register_secret("abc")
    assert found_in("abc") == set()
