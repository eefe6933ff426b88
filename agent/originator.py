"""What a pool of hosts knows this agent by: the same after each restart, and no other agent's."""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
from pathlib import Path

_MACHINE_ID = Path("/etc/machine-id")
_OTHER = re.compile(r"[^0-9A-Za-z.-]")


def originator(state_dir: Path, *, machine_id: Path = _MACHINE_ID, host: str | None = None) -> str:
    """`storage-agent@HOST/DIGEST`. No state: what died has to be found again although its state directory is lost.

    The digest is of the machine's id and of `state_dir`, of which one machine has only one in use. So a copy of that directory
    on another machine is another agent. The id itself is not to be shown (machine-id(5)). Whoever gives the host another name
    has leftovers removed a little later, when what locks them has expired.
    """
    try:
        machine = machine_id.read_bytes().strip()
    except OSError:  # in some containers; there the host's name is the container's
        machine = b""
    digest = hmac.new(machine, f"storage-agent {state_dir}".encode(), hashlib.sha256).hexdigest()[:16]
    return f"storage-agent@{_OTHER.sub('-', host or socket.gethostname())}/{digest}"
