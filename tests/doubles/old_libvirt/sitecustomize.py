"""For processes that have this folder in PYTHONPATH: libvirt knows nothing of backups and checkpoints, as it did before 6.0."""

from __future__ import annotations

from typing import Any, NoReturn

import libvirt

_LATER = ("backupBegin", "backupGetXMLDesc", "listAllCheckpoints", "checkpointLookupByName", "checkpointCreateXML")


def _refused(_domain: Any, *_told: Any) -> NoReturn:
    error = libvirt.libvirtError("this function is not supported by the connection driver")
    error.err = (libvirt.VIR_ERR_NO_SUPPORT, 0, error.args[0], 0, None, None, None, 0, 0)
    raise error


for _name in _LATER:
    setattr(libvirt.virDomain, _name, _refused)
