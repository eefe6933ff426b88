"""How scripts are run on a Hyper-V host, whatever is between. See `hypervisors.hyperv.scripts` for what there is to run."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any


class PowerShellPort(abc.ABC):
    """One host. Any number of calls may be under way; a bounded number of them runs."""

    @abc.abstractmethod
    async def run(self, script: str, argument: Mapping[str, Any], *, timeout_s: float = 120.0) -> Any:
        """The result of the script of that name, of its one argument. Both are JSON; `argument` has every field that the script
        names, with None for what does not matter, and nothing secret.

        A script may run more than once: all of them are made for that, and a lost connection is reason enough. What it has
        done stays done. `timeout_s` is for all of it.

        When cancelled, the script is stopped wherever it is, and nothing is left of the connection that it ran over; jobs that
        it started go on (`hypervisors.hyperv.jobs`).

        Errors: those of `hypervisors.hyperv.errors.failure` for what the host refuses; `Unavailable` when it could not be
        reached, or did not end in time; `TlsFailed`, `AccessDenied`; `KeyError` for a name that is not a script's.
        """

    async def aclose(self) -> None:
        """Give back connections, and what the host keeps for them. Idempotent."""
