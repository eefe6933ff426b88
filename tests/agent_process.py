"""The real agent as a process, with its command line, in directories of its own."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from typer.testing import CliRunner

from agent.cli import app

AGENT = Path(sys.executable).parent / "storage-agent"
WAIT_S = 60.0  # generous: machines are shared


@dataclass(frozen=True)
class Done:
    """A finished run of the command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass
class AgentHost:
    """A host with a configuration, a pool, and an agent that can be started, killed and started again."""

    root: Path
    options: str = ""  # more TOML
    libvirt: str = "none"  # its URI
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        for name in ("run", "images"):
            (self.root / name).mkdir(exist_ok=True)
        self.pool.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f'[agent]\nstate_dir = "{self.root}/state"\nruntime_dir = "{self.root}/run"\nshutdown_s = 1\n'
            f'[pools]\nroots = ["{self.root}/pools", "{self.root}/images"]\n'
            f'[kvm]\nlibvirt_uri = "{self.libvirt}"\n'
            f'[api]\nsocket = "{self.socket}"\n{self.options}'
        )

    @property
    def config(self) -> Path:
        return self.root / "agent.toml"

    @property
    def socket(self) -> Path:
        return self.root / "run" / "api.sock"

    @property
    def pool(self) -> Path:
        return self.root / "pools" / "p"

    @property
    def log(self) -> Path:
        return self.root / "agent.log"

    def env(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
            "STORAGE_AGENT_CONFIG": str(self.config),
            "SSL_CERT_FILE": os.devnull,  # see tests/conftest.py
            **self.environment,
        }

    def start(self) -> None:
        """Start the agent and wait until it takes commands."""
        output: IO[bytes]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [AGENT, "run"], env=self.env(), cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + WAIT_S
        while not self.socket.exists() or self("status").code != 0:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.01)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the agent; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(WAIT_S)
        self.process = None
        return code

    def __call__(self, *arguments: str | Path, stdin: str = "") -> Done:
        """Run the command line to its end, inside of this process: that saves a second of imports each time."""
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env=self.env())
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    def call(self, method: str, path: str) -> tuple[int, Any]:
        """One request over the socket: status, and JSON where it is some. Much quicker than the command line."""
        with closing(http.client.HTTPConnection("agent", timeout=WAIT_S)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(self.socket))
            connection.request(method, path)
            response = connection.getresponse()
            text = response.read().decode()
            return response.status, json.loads(text) if text.startswith("{") else text

    def begin(self, *arguments: str | Path, terminal: int | None = None) -> subprocess.Popen[bytes]:
        """Start a process of the command line, with standard error on a terminal if one is given. Whoever calls ends it.

        It hears Ctrl-C even where the tests run in the background, which is started with SIGINT ignored.
        """
        env = {**self.env(), **({} if terminal is None else {"TERM": "xterm-256color"})}
        error = subprocess.PIPE if terminal is None else terminal
        argv = ["env", "--default-signal=INT", AGENT, *arguments]
        return subprocess.Popen(argv, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=error)

    def write(self, command: dict[str, Any], name: str = "command.json") -> Path:
        """The command as a file that only its owner may read."""
        path = self.root / name
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(command, file)
        return path

    def volume(self, path: str = "v", **more: Any) -> dict[str, Any]:
        store = {"storeType": "primary", "uuid": "p", "poolType": "Filesystem", "path": str(self.pool)}
        return {"type": "volume", "path": path, "format": "QCOW2", "dataStore": store, **more}

    def files(self) -> list[str]:
        """What is in the pool, records apart."""
        return sorted(path.name for path in self.pool.iterdir() if path.name != ".storage-agent")


@contextmanager
def agent_host(
    options: str = "", *, started: bool = True, libvirt: str = "none", **environment: str
) -> Iterator[AgentHost]:
    """Removed at the end, whatever is in it. The path is short: it holds unix sockets."""
    root = Path(tempfile.mkdtemp(prefix="agent-"))
    host = AgentHost(root, options, libvirt, environment)
    try:
        if started:
            host.start()
        yield host
    finally:
        if host.process is not None:
            host.process.kill()
            host.process.wait()
        shutil.rmtree(root)
