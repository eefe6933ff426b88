"""What the agent takes for granted about a pool of hosts, tried on that pool: `storage-agent selftest`.

    place.py              disks of its own in one SR, what is in them, and their removal
    checks.py             what checks are, and the checks of calls and transfers
    checks_of_copies.py   those of snapshots, clones and what changed
    checks_of_extras.py   those of what not every pool has: ISOs, NBD, changed block tracking
    run.py                all of them, one after the other

It touches nothing that it did not make: its disks are told by a name that no other has.
"""
