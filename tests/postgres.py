"""A real PostgreSQL for the tests: one server for the run, a database for each test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import WAIT_S, free_ports, wait_for

BIN = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"
PASSWORD = "a test's own"
SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{directory}'
fsync = off
synchronous_commit = off
full_page_writes = off
shared_buffers = 32MB
"""


@dataclass(frozen=True)
class Postgres:
    """A server that trusts `USER` on its socket and asks it for `PASSWORD` on TCP."""

    port: int
    directory: Path

    def url(self, database: str) -> str:
        """For `PostgresDatabase`, without the password."""
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Behind the back of what is tested."""
        done = subprocess.run(
            [BIN / "psql", "-h", self.directory, "-p", str(self.port), "-U", USER, "-d", database, "-Atc", statement],
            check=True,
            capture_output=True,
            timeout=WAIT_S,
        )
        return done.stdout.decode().strip()


def _as_user(argv: Sequence[str | Path]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    plain = [str(part) for part in argv]
    return ["runuser", "-u", USER, "--", *plain] if os.geteuid() == 0 else plain


def _ready(directory: Path, port: int) -> bool:
    asked: list[str | Path] = [BIN / "pg_isready", "-q", "-h", directory, "-p", str(port)]
    return subprocess.run(asked, check=False, timeout=WAIT_S).returncode == 0


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server. Its folder is a short one, since a socket's path must be."""
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    (port,) = free_ports(1)
    data, log, secret = directory / "data", directory / "log", directory / "password"
    try:
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            user = pwd.getpwnam(USER)
            for path in (directory, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        initdb: list[str | Path] = [BIN / "initdb", "-D", data, "-U", USER, "--no-sync", "-E", "UTF8", "--locale=C"]
        access = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}"]
        subprocess.run(_as_user([*initdb, *access]), check=True, capture_output=True, timeout=WAIT_S)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS.format(port=port, directory=directory))
        with log.open("wb") as output:
            server = subprocess.Popen(
                _as_user([BIN / "postgres", "-D", data]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_for(lambda: _ready(directory, port), server, log)
            yield Postgres(port, directory)
        finally:
            stop: list[str | Path] = [BIN / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"]
            subprocess.run(_as_user(stop), check=True, capture_output=True, timeout=WAIT_S)
            server.wait(WAIT_S)
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def postgres_database(postgres: Postgres) -> Iterator[str]:
    """The name of a fresh database."""
    name = f"t{uuid.uuid4().hex}"
    postgres.sql(f"CREATE DATABASE {name}")
    yield name
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)")
