"""A Hyper-V host as its clients see it: WinRM over TLS, and behind it scripts that act on directories.

It exists because there is no Windows to be had here, and no PowerShell. What it does is what Microsoft's documents say; nothing
of it has been compared with a real host. It proves transport, retries, cancellation and what the scripts take and give; it
does **not** prove that the scripts do that on Windows: `tests/windows` is for that.

In the test's own event loop::

    async with running(folder, roots={"D:\\\\pool": share}) as host:     # host.endpoint, host.model, host.faults
        host.faults.wire.append(WireFault("Receive", "after"))

`roots`: directories that stand for Windows paths; Samba may export them meanwhile. `host.endpoint` is by negotiate (NTLM, by
pyspnego) with the host's own CA; `host.with_certificate()` is by certificate. `host.model.add_machine("vm", state="Running")`
makes a machine; `host.model.let_jobs_end.clear()` keeps jobs and merges going; `host.model.forget_jobs()` loses them.
A text that is not known (`tests.doubles.hyperv.scripts`) fails, and fails the test when the context ends.

Hyper-V's rules that are in it: disks of machines that run, and of jobs, are in use, with all that they build on; merges are
asynchronous; a checkpoint goes on in `NAME_GUID.avhdx`, and the file goes away when the checkpoint is removed and merged;
differencing disks name their parent's content, and are refused once that was written to; IDE disks are not added to a
machine that runs; no disk gets smaller; sparse files are no disks (Samba's attribute). Contents are real VHDX.

What is left out: Kerberos, message encryption over plain HTTP, roles, host calls, disconnected shells, VHD (as opposed to
VHDX), VHD sets, replication, RCT, shared disks, machines that start and stop.
"""

from __future__ import annotations

from tests.doubles.hyperv.faults import ScriptFault, WireFault
from tests.doubles.hyperv.host import Host, running

__all__ = ["Host", "ScriptFault", "WireFault", "running"]
