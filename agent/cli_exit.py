"""What the exit code of the command line says, and how failures are shown."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NoReturn

from agent.cli_client import Refused, Unreachable
from stores.errors import StorageError


class Exit(IntEnum):
    """The exit code, by outcome."""

    OK = 0
    FAILED = 1  # finally: the command itself has to change
    USAGE = 2  # what was typed
    RETRY = 3  # the same again may succeed
    OPERATOR = 4  # somebody has to do something first: credentials, space, configuration
    UNREACHABLE = 5  # no agent answered
    INTERRUPTED = 130  # Ctrl-C, as shells count it


BY_RETRY = {"no": Exit.FAILED, "yes": Exit.RETRY, "operator": Exit.OPERATOR}


@contextlib.contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Run a subcommand's work; failures become one readable message (or the API's error object) and an exit code."""
    try:
        yield
    except Unreachable as error:
        fail(_failure(error), as_json, Exit.UNREACHABLE)
    except StorageError as error:
        fail(_failure(error), as_json)
    except Refused as error:
        fail(error.failure, as_json)
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(Exit.OK) from None
    except KeyboardInterrupt:
        raise SystemExit(Exit.INTERRUPTED) from None


def fail(failure: dict[str, Any], as_json: bool, code: Exit | None = None) -> NoReturn:
    """Show a failure in the API's form and leave."""
    if as_json:
        print(json.dumps({"error": failure}))
    else:
        show_failure(failure)
    raise SystemExit(code if code is not None else BY_RETRY.get(str(failure.get("retryable")), Exit.FAILED))


def say(text: str, *, error: bool = False) -> None:
    """Print text that may hold names from outside: what could command a terminal is shown as an escape instead."""
    print(printable(text), file=sys.stderr if error else sys.stdout)


def printable(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def show_failure(failure: dict[str, Any]) -> None:
    """On standard error: kind and message, then what can be done, then the details that the message does not hold."""
    advice = {"yes": "trying again later may help", "operator": "an operator has to act first"}
    hint = advice.get(str(failure.get("retryable")))
    say(f"{failure.get('kind')}: {failure.get('message')}" + (f" ({hint})" if hint else ""), error=True)
    problems = (failure.get("details") or {}).get("problems")
    if isinstance(problems, list) and len(problems) > 1:
        for problem in problems:
            say(f"  {problem.get('at')}: {problem.get('problem')}", error=True)


def _failure(error: StorageError) -> dict[str, Any]:
    return {"kind": error.kind, "retryable": error.retry.value, "message": error.message, "details": error.details}
