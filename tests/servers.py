"""Real servers for the tests, as fixtures: each one child process on loopback, stopped by its own pid."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import trustme

WAIT_S = 60.0  # generous: machines are shared


def free_ports(count: int) -> list[int]:
    """Ports that are free now. All are held until the last is known, so that they differ."""
    held = []
    try:
        for _ in range(count):
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            held.append(sock)
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()


def seaweed_ports() -> list[int]:
    """Six free ports whose gRPC twins (port + 10000, opened by SeaweedFS for each) are free as well.

    They lie below those that the kernel gives to connections, and test processes that start at the same time look in different
    places: between the look and the server's start anybody could take a port.
    """
    found: list[int] = []
    candidate = 10_000 + os.getpid() * 64 % 9_600
    while len(found) < 6:
        candidate += 1
        if all(_is_free(port) for port in (candidate, candidate + 10000)):
            found.append(candidate)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise RuntimeError(f"server did not come up (exit {process.poll()}): {tail}")
        time.sleep(0.02)


def http_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def running(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, until the end of the context: SIGTERM, and SIGKILL for one that does not go."""
    output: IO[bytes]
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    tls_endpoint: str | None
    ca_file: Path | None
    access_key: str
    secret_key: str
    pid: int | None = None  # of a real server

    @property
    def port(self) -> int:
        return int(self.endpoint.rsplit(":", 1)[1])

    def client(self) -> Any:
        """A boto3 client: for set-up and for looking behind the back of what is tested."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5, "mode": "standard"}),
        )


@dataclass(frozen=True)
class Certificates:
    ca_file: Path
    cert: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    found = Certificates(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
    authority.cert_pem.write_to_path(str(found.ca_file))
    found.cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(found.key))
    return found


@contextmanager
def run_seaweed(
    directory: Path, certificates: Certificates | None = None, *, ports: Sequence[int] | None = None
) -> Iterator[S3Server]:
    """SeaweedFS with one identity. All listeners are on 127.0.0.1, and it does not call home. On the same directory and `ports`
    (of `seaweed_ports`) again it is the same server.

    Each bucket takes volumes of its own; the default number of them is used up by some sixty buckets.
    """
    config = directory / "s3.json"
    if not config.exists():
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": "testkey", "secretKey": "sw-" + uuid.uuid4().hex}]
        config.write_text(json.dumps({"identities": [{"name": "t", "credentials": keys, "actions": actions}]}))
    (known,) = json.loads(config.read_text())["identities"][0]["credentials"]
    data = directory / "data"
    data.mkdir(exist_ok=True)
    s3, master, volume, filer, admin, tls = ports or seaweed_ports()
    argv = [
        str(Path(sys.executable).parent / "weed"), "mini", f"-dir={data}", "-volume.max=2000",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={s3}", f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", f"-admin.port={admin}",
        f"-filer.localSocket={directory / 'f.sock'}", f"-s3.localSocket={directory / 's.sock'}", f"-s3.config={config}",
    ]  # fmt: skip
    if certificates is not None:
        argv += [f"-s3.port.https={tls}", f"-s3.cert.file={certificates.cert}", f"-s3.key.file={certificates.key}"]
    log = directory / "weed.log"
    with running(argv, log) as process:
        wait_for(lambda: http_ok(f"http://127.0.0.1:{s3}/healthz"), process, log)
        server = S3Server(
            f"http://127.0.0.1:{s3}",
            f"https://localhost:{tls}" if certificates else None,
            certificates.ca_file if certificates else None,
            known["accessKey"],
            known["secretKey"],
            process.pid,
        )
        wait_for(lambda: _accepts_objects(server), process, log)
        yield server


def _accepts_objects(server: S3Server) -> bool:
    """The first PUT makes a volume and may fail while the parts of the server find each other."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = server.client()
    try:
        client.create_bucket(Bucket="ready")
        client.put_object(Bucket="ready", Key="ready", Body=b"ready")
    except client.exceptions.BucketAlreadyOwnedByYou:
        client.put_object(Bucket="ready", Key="ready", Body=b"ready")
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()
    return True


NGINX_CONF = """
daemon off;
user root;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log {dir}/access.log;
  client_body_temp_path {dir}/tmp; proxy_temp_path {dir}/tmp; fastcgi_temp_path {dir}/tmp;
  uwsgi_temp_path {dir}/tmp; scgi_temp_path {dir}/tmp;
  sendfile on;
  split_clients $request_id $fault {{ 30% 503; * 0; }}
  split_clients $request_id $cut {{ 30% 1; * 0; }}
  server {{
    listen 127.0.0.1:{port};
    listen 127.0.0.1:{tls} ssl;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    root {root};
    location / {{ }}
    location /norange/ {{ alias {root}/; max_ranges 0; }}
    location /flaky503/ {{ alias {root}/; if ($fault = 503) {{ add_header Retry-After 0 always; return 503; }} }}
    location /flakydrop/ {{ alias {root}/; if ($cut) {{ return 444; }} }}
    location /slow/ {{ alias {root}/; limit_rate 1m; }}
    location /stall/ {{ alias {root}/; limit_rate_after 1m; limit_rate 1k; }}
    location /auth/ {{ alias {root}/; auth_basic x; auth_basic_user_file {dir}/htpasswd; }}
    location /redir/ {{ rewrite ^/redir/(.*) /$1 redirect; }}
    location /loop/ {{ rewrite ^/loop/(.*) /loop/$1 redirect; }}
  }}
}}
"""


@dataclass(frozen=True)
class NginxServer:
    root: Path
    port: int
    tls_port: int
    ca_file: Path
    access_log: Path

    def url(self, path: str, *, tls: bool = False) -> str:
        """The address by IP literal; over TLS the certificate names it too."""
        return f"https://127.0.0.1:{self.tls_port}/{path}" if tls else f"http://127.0.0.1:{self.port}/{path}"


@contextmanager
def run_nginx(directory: Path, certificates: Certificates) -> Iterator[NginxServer]:
    root = directory / "www"
    root.mkdir(exist_ok=True)
    (directory / "tmp").mkdir(exist_ok=True)
    (directory / "htpasswd").write_text("user:{PLAIN}pass\n")
    port, tls = free_ports(2)
    config = directory / "nginx.conf"
    config.write_text(
        NGINX_CONF.format(dir=directory, port=port, tls=tls, cert=certificates.cert, key=certificates.key, root=root)
    )
    log = directory / "nginx.out"
    with running(["/usr/sbin/nginx", "-c", str(config), "-p", str(directory)], log) as process:
        (root / "ready").write_text("ready")
        wait_for(lambda: http_ok(f"http://127.0.0.1:{port}/ready"), process, log)
        yield NginxServer(root, port, tls, certificates.ca_file, directory / "access.log")


# --------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A test authority and a certificate for localhost and 127.0.0.1."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[S3Server]:
    with run_seaweed(tmp_path_factory.mktemp("weed"), certificates) as server:
        yield server


@pytest.fixture
def bucket(seaweed: S3Server) -> Iterator[str]:
    """A fresh bucket; its content goes with the server."""
    name = "b-" + uuid.uuid4().hex[:12]
    client = seaweed.client()
    client.create_bucket(Bucket=name)
    yield name
    client.close()


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[NginxServer]:
    directory = tmp_path_factory.mktemp("nginx")
    for parent in (directory, *directory.parents[:2]):
        parent.chmod(0o755)
    with run_nginx(directory, certificates) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto's S3: checks no signatures, so only for what does not rest on them."""
    directory = tmp_path_factory.mktemp("moto")
    (port,) = free_ports(1)
    argv = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    log = directory / "moto.log"
    with running(argv, log) as process:
        wait_for(lambda: http_ok(f"http://127.0.0.1:{port}/moto-api/"), process, log)
        yield S3Server(f"http://127.0.0.1:{port}", None, None, "any", "moto-" + uuid.uuid4().hex, process.pid)
