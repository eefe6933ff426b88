"""A pytest plugin: no secret that a test uses may get into the log, from whatever module.

Each test is followed by a look at what was logged and printed during it; a secret there fails that test. Records of our own
loggers are searched as they were given to `logging`, since code has to keep secrets out by itself; those of libraries are
searched as they would be written, after redaction. Hooked in by naming this module in `pytest_plugins`.
"""

from __future__ import annotations

import base64
import logging
import urllib.parse
from collections.abc import Generator
from typing import Any

import pytest
import structlog

from agent.logs import formatter

OURS = ("agent", "hypervisors", "stores")
SHORTEST = 8  # anything shorter turns up by chance

_secrets: dict[str, str] = {}  # spelling -> name


def register_secret(value: str, name: str = "a registered secret") -> str:
    """From now on `value`, also URL-quoted or in base64, must not be logged or printed. Returns it."""
    if len(value) < SHORTEST:
        raise ValueError(f"{name} is too short to be searched for: give it at least {SHORTEST} characters")
    for spelling in spellings(value):
        _secrets[spelling] = name
    return value


def forget_secret(name: str) -> None:
    """Look no longer for what was registered under that name."""
    for spelling in [spelling for spelling, known in _secrets.items() if known == name]:
        del _secrets[spelling]


def spellings(value: str) -> set[str]:
    """The forms in which a secret travels."""
    return {
        value,
        urllib.parse.quote(value, safe=""),
        urllib.parse.quote_plus(value),
        base64.b64encode(value.encode()).decode().rstrip("="),
    }


def found_in(text: str) -> set[str]:
    """Names of the registered secrets that `text` holds."""
    return {name for spelling, name in _secrets.items() if spelling in text}


class LogScanner(logging.Handler):
    """Sees every record of the run; remembers which of them held a secret."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.setFormatter(formatter(console=False))
        self.leaks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not _secrets:
            return
        text = self.format(record)
        if record.name.partition(".")[0] in OURS:
            text += f"{record.msg!r} {record.args!r}"
        self.leaks += [f"{name} was logged by {record.name} ({record.levelname})" for name in found_in(text)]

    def take(self) -> list[str]:
        """What was found since the last call."""
        taken, self.leaks = self.leaks, []
        return taken


_scanner = LogScanner()


def pytest_configure(config: pytest.Config) -> None:
    logging.getLogger().addHandler(_scanner)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.DEBUG)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    logging.getLogger().removeHandler(_scanner)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
    """Whatever fixture has a `secret_key` has a secret: the S3 servers do."""
    made = yield
    secret = getattr(made, "secret_key", None)
    if isinstance(secret, str) and len(secret) >= SHORTEST:
        register_secret(secret, f"the secret key of fixture {fixturedef.argname}")
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A passed phase that leaked is a failed one."""
    report: Any = yield
    leaks = _scanner.take()
    for title, text in report.sections:
        # Sections pile up from phase to phase; what pytest captured of the log is what libraries gave, before redaction.
        if title in (f"Captured stdout {report.when}", f"Captured stderr {report.when}"):
            leaks += [f"{name} was printed ({title})" for name in found_in(text)]
    if leaks and report.passed:
        report.outcome = "failed"
        report.longrepr = "secrets got out:\n" + "\n".join(sorted(set(leaks)))
        report.sections = [(title, "not shown: it holds a secret") for title, _ in report.sections]
    return report
