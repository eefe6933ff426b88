"""How the demos speak, and end when something is not as it should be."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def expect(true: bool, otherwise: str) -> None:
    if not true:
        raise SystemExit(otherwise)
