"""A pool of XenServer hosts as its clients see it: XAPI's calls, events and tasks, and the handlers that stream disks.

It exists because there is no XenServer to be had here. What it does is what the public sources and documents of XAPI say;
nothing of it has been compared with a real host. It shares no code with the agent, neither for VHD nor for the wire;
`tests/flows/fake_xapi/` holds it against XAPI's own Python client, curl, libvhdi, qemu-img and NBD's tools.

Starting one
------------
In the test's own event loop::

    async with running(folder, Settings(hosts=2)) as pool:     # pool.access, pool.controls, pool.world
        await pool.controls.arm(where="import", step="body", action="drop", at_byte=5 << 20)

In a process of its own, which outlives an agent that is killed (`python -m tests.doubles.xapi FOLDER [SETTINGS]`)::

    with process(folder, Settings()) as pool:                  # pool.access, pool.control(name, ...), pool.process
        pool.control("arm", where="rpc", step="start", match="VDI.create", action="lose-session")

`access`: `urls` of the hosts (`https://127.0.0.1:PORT`; host 0 is the coordinator at the start), `sockets` (dom0's own,
one for each host), `ca_pem`, `user`, `password`, `address(n)`. All hosts are at 127.0.0.1, so `host.address`, the
parameter of HOST_IS_SLAVE and the Location of a redirect hold `127.0.0.1:PORT`, where real ones hold an address only.

What is in it
-------------
SRs "shared" (nfs, default), "blocks" (lvmoiscsi, thick), "isos" (iso), "local-N" (ext, only host N has it plugged, so that
other hosts redirect); a control domain for each host; a halted VM "guest"; one network. `Settings` has sizes, delays, how
JSON writes integers, whether ISOs can be uploaded, whether hosts know qcow2; and `lies`, what is not as it should be.

RPC: POST to `/`, `/RPC2` (XML), `/jsonrpc` (JSON-RPC 1 and 2); `system.listMethods` names all calls. Contents are chains of
copy-on-write nodes as SM makes them, with changed block tracking; `virtual_size` is rounded to 2 MiB, space is charged for
2 MiB blocks (thick SRs: whole leaves), freed by the collector `gc_delay_s` after a destruction.
PUT `/import_raw_vdi`: raw, `chunked`, vhd, (qcow2). GET `/export_raw_vdi`: raw, vhd, vhd with `base`, (qcow2).
NBD: `network.add_purpose(net, "nbd")`, then `VDI.get_nbd_info`; behind each entry is a real qemu-nbd with a port of its own.

What is left out: `format=tar` (404), deltas of qcow2-backed disks, pool-secret and client-certificate authentication, roles,
`event.register`/`next`/`inject`, VM.create and all that does not concern disks. NBD exports show the disk as it was when it
was first asked about.

Looking behind
--------------
`Controls` (class `controls.Controls`): `srs`, `make_vdi`, `write`, `digest`, `save`, `blocks`, `depth`; `left` (tasks,
sessions by originator, VBDs of control domains, VDIs, open connections: what must be empty after a test), `transfers` (one
record for each request to the data handlers: bytes, status, how the client showed who it is), `calls`.

Faults
------
`arm(where=, step=, action=, match=, host=, skip=, times=, at_byte=, seconds=, status=, to=, error=)`, see `faults.Fault`:

===========  ======  =========================================================================================
where        step    action
===========  ======  =========================================================================================
connect      start   drop, delay, hang
rpc          start   the call is not made: drop, hang, http (`status`), garbage, fail (`error`), lose-session;
                     delay
rpc          answer  the call was made: drop, hang, http, garbage, delay
async        start   in the task of an `Async.` call: delay, hang (a stuck task), fail, cancel, lose-task
import,      head    before any answer: drop, delay, hang, http (401, 503 ...), redirect (`to` any address)
export
import,      attach  200 was said, no byte has passed: drop, delay, hang, fail, cancel, lose-task, leave-plugged
export               (the VBD stays in dom0); import: short (the last `at_byte` bytes of the disk are not written)
import,      body    after `at_byte` bytes: drop, delay, hang, fail, cancel, lose-task, silent-end (the connection
export               ends properly, the task never); export: false-success (it ends, and the task has succeeded)
import,      end     all bytes have passed: drop, delay, hang, fail, cancel, lose-task, silent-end
export
===========  ======  =========================================================================================

"drop" is a reset; the task of a transfer that is dropped fails with VDI_IO_ERROR, as it does when a client goes away.
"hang" says nothing more until the client goes, and reads nothing for `seconds`. "lose-task": the task's reference is no
longer valid.
Controls for the rest: `stop_host`, `start_host`, `restart` (sessions lost or not, events counted anew),
`make_coordinator`, `show_certificate`, `drop_sessions`, `advance` (time, then XAPI's garbage collector), `cancel_task`,
`lose_task`, `set_room` (an SR fills up in the middle), `plug`, `set_vdi`, `set_json_numbers`. Every step that a client can
be at when a host dies is a `drop` at that step; a host that is there and says nothing is SIGSTOP to the process.
"""

from __future__ import annotations

from tests.doubles.xapi.faults import Fault
from tests.doubles.xapi.pool import Access, Pool, running
from tests.doubles.xapi.remote import Remote, process
from tests.doubles.xapi.settings import Settings

__all__ = ["Access", "Fault", "Pool", "Remote", "Settings", "process", "running"]
