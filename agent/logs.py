"""Logs: structlog in front, the standard library's loggers routed through the same pipeline, secrets taken out last.

Every record of work on a command carries its id: the dispatcher binds it as a context variable, which tasks and
`asyncio.to_thread` inherit, and libraries' records take it up as well. Redaction is the last step before rendering, so that
a library's message, an exception's text and our own fields all pass it. It is a safety net: code keeps secrets out of logs by
holding them as `Secret`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

from agent.config import LogFormat, LogLevel
from stores.secret import MASK, Secret

MAX_TEXT = 8192  # characters of one field: more than any sane message, less than a request body

_SECRET_KEY = re.compile(
    r"pass(word|phrase|wd)?$|secret|token$|credential|authorization|signature|access_?key|private_?key|api_?key|^key$|cookie",
    re.IGNORECASE,
)
# What a credential looks like inside text: presigned queries, SigV4 headers and botocore's debug output, bearer and basic
# authorization, user information in URLs, and assignments such as `secretKey=...` or `'password': '...'`.
_SECRET_TEXT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)(?:=|%3D))[^&\s\"'<>]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)((?:AWS4-HMAC-SHA256\s+)?Credential=)[^,\s\"']+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(\bSignature[=:]\s*)[0-9a-zA-Z/+=%]{8,}"), rf"\1{MASK}"),
    (re.compile(r"(?i)(AWSAccessKeyId=)[^&\s\"']+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}"), rf"\1{MASK}"),
    (re.compile(r"(?i)(x-amz-security-token[\"']?\s*[:=]\s*b?[\"']?)[^\s\"',&]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{1,15}://)[^/?#\s@\"']+@"), rf"\1{MASK}@"),
    (
        re.compile(
            r"(?i)((?:password|passwd|passphrase|secret_?(?:access_?)?key|secret|access_?token|api_?key|temp_url_sig)"
            r"[\"']?\s*[:=]\s*b?[\"']?)(?!\*\*\*)[^\s\"',;&)}\]]+"
        ),
        rf"\1{MASK}",
    ),
)

# Every pattern above needs one of these: most text has none of them, and one search is cheaper than eight.
_HINT = re.compile(r"(?i)amz|credential|signature|accesskey|bearer|basic|://|pass|secret|token|api_?key|temp_url")
# Names and messages come from outside; an escape sequence in one must not reach an operator's terminal.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def redact_text(text: str) -> str:
    """`text` without whatever looks like a credential, without control characters, and of bounded length."""
    length = len(text)
    text = text[:MAX_TEXT]
    if _HINT.search(text):
        for pattern, replacement in _SECRET_TEXT:
            text = pattern.sub(replacement, text)
    text = text.translate(_CONTROL)
    return text if length <= MAX_TEXT else f"{text}... ({length} characters)"


def redact(value: Any, key: str = "") -> Any:
    """`value` as it may be logged under `key`; containers are walked, what is neither text nor number becomes its repr."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Secret) or _SECRET_KEY.search(key):
        return MASK
    if isinstance(value, Mapping):
        return {str(name): redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    return redact_text(value if isinstance(value, str) else repr(value))


def _redact_event(logger: Any, method: str, event: EventDict) -> EventDict:
    """The structlog processor over `redact`. Keys that begin with an underscore are structlog's own."""
    return {key: value if key.startswith("_") else redact(value, key) for key, value in event.items()}


def configure(format_: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Route every logger of the process to `stream` (standard error). Called once, before anything logs."""
    stream = stream or sys.stderr
    console = format_ is LogFormat.CONSOLE or (format_ is LogFormat.AUTO and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(console=console, colors=console and stream.isatty()))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.value.upper())
    # An unhandled failure in `raiseExceptions` mode prints the record with its arguments, past the redaction.
    logging.raiseExceptions = False
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_common(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def formatter(*, console: bool, colors: bool = False) -> logging.Formatter:
    """The formatter that both our records and those of libraries go through. Tracebacks are plain text, without locals."""
    # sort_keys stays off: the order in which fields were given is the order in which they read best.
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(default=repr)
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_common(),
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.StackInfoRenderer(),
            _redact_event,
            renderer,
        ],
    )


def _common() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
