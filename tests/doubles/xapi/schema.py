"""The fields of XAPI's records, with the values that they have when nothing else was said.

Names and types are those of the public data model. A default's type is the field's type: `int` is 64 bit and travels as
text in XML, `Moment` is a date, everything else is what it looks like.
"""

from __future__ import annotations

from typing import Any

NULL = "OpaqueRef:NULL"


class Moment(str):
    """A date as `20260101T00:00:00Z`."""

    __slots__ = ()


NEVER = Moment("19700101T00:00:00Z")

FIELDS: dict[str, dict[str, Any]] = {
    "VDI": {
        "uuid": "", "name_label": "", "name_description": "", "allowed_operations": [], "current_operations": {},
        "SR": NULL, "VBDs": [], "crash_dumps": [], "virtual_size": 0, "physical_utilisation": 0, "type": "user",
        "sharable": False, "read_only": False, "other_config": {}, "storage_lock": False, "location": "",
        "managed": True, "missing": False, "parent": NULL, "xenstore_data": {}, "sm_config": {},
        "is_a_snapshot": False, "snapshot_of": NULL, "snapshots": [], "snapshot_time": NEVER, "tags": [],
        "allow_caching": False, "on_boot": "persist", "metadata_of_pool": NULL, "metadata_latest": False,
        "is_tools_iso": False, "cbt_enabled": False,
    },
    "SR": {
        "uuid": "", "name_label": "", "name_description": "", "allowed_operations": [], "current_operations": {},
        "VDIs": [], "PBDs": [], "virtual_allocation": 0, "physical_utilisation": 0, "physical_size": 0, "type": "",
        "content_type": "user", "shared": False, "other_config": {}, "tags": [], "default_vdi_visibility": True,
        "sm_config": {}, "blobs": {}, "local_cache_enabled": False, "introduced_by": NULL, "clustered": False,
        "is_tools_sr": False,
    },
    "VBD": {
        "uuid": "", "allowed_operations": [], "current_operations": {}, "VM": NULL, "VDI": NULL, "device": "",
        "userdevice": "", "bootable": False, "mode": "RW", "type": "Disk", "unpluggable": True,
        "storage_lock": False, "empty": False, "other_config": {}, "currently_attached": False, "status_code": 0,
        "status_detail": "", "runtime_properties": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        "qos_supported_algorithms": [], "metrics": NULL,
    },
    "PBD": {
        "uuid": "", "host": NULL, "SR": NULL, "device_config": {}, "currently_attached": False, "other_config": {},
    },
    "task": {
        "uuid": "", "name_label": "", "name_description": "", "allowed_operations": [], "current_operations": {},
        "created": NEVER, "finished": NEVER, "status": "pending", "resident_on": NULL, "progress": 0.0,
        "type": "<none/>", "result": "", "error_info": [], "other_config": {}, "subtask_of": NULL, "subtasks": [],
        "backtrace": "()",
    },
    "SM": {
        "uuid": "", "name_label": "", "name_description": "", "type": "", "vendor": "Example", "copyright": "",
        "version": "3.0", "required_api_version": "1.1", "configuration": {}, "capabilities": [], "features": {},
        "other_config": {}, "driver_filename": "", "required_cluster_stack": [], "supported_image_formats": [],
    },
    "host": {
        "uuid": "", "name_label": "", "name_description": "", "address": "", "hostname": "", "enabled": True,
        "API_version_major": 2, "API_version_minor": 21, "API_version_vendor": "XenSource", "software_version": {},
        "PBDs": [], "PIFs": [], "resident_VMs": [], "control_domain": NULL, "local_cache_sr": NULL,
        "other_config": {}, "tags": [], "allowed_operations": [], "current_operations": {}, "capabilities": [],
    },
    "pool": {
        "uuid": "", "name_label": "", "name_description": "", "master": NULL, "default_SR": NULL, "other_config": {},
        "tags": [], "allowed_operations": [], "current_operations": {},
    },
    "network": {
        "uuid": "", "name_label": "", "name_description": "", "bridge": "xenbr0", "purpose": [], "PIFs": [],
        "other_config": {}, "tags": [], "managed": True, "MTU": 1500,
    },
    "PIF": {
        "uuid": "", "device": "eth0", "network": NULL, "host": NULL, "IP": "", "management": True, "MAC": "",
        "currently_attached": True, "other_config": {},
    },
    "VM": {
        "uuid": "", "name_label": "", "name_description": "", "power_state": "Halted", "resident_on": NULL,
        "is_control_domain": False, "is_a_template": False, "is_a_snapshot": False, "VBDs": [], "other_config": {},
        "tags": [], "allowed_operations": [], "current_operations": {}, "memory_static_max": 1 << 30,
        "VCPUs_max": 1,
    },
    "session": {
        "uuid": "", "this_host": NULL, "this_user": NULL, "originator": "", "last_active": NEVER,
        "other_config": {}, "is_local_superuser": True, "auth_user_name": "",
    },
}  # fmt: skip

NO_SETTER = {
    "uuid", "allowed_operations", "current_operations", "SR", "VBDs", "virtual_size", "physical_utilisation", "type",
    "location", "managed", "missing", "parent", "is_a_snapshot", "snapshot_of", "snapshots", "snapshot_time",
    "cbt_enabled", "VDIs", "PBDs", "PIFs", "virtual_allocation", "physical_size", "VM", "VDI", "device", "empty",
    "currently_attached", "host", "created", "finished", "resident_on", "subtask_of", "subtasks", "master",
    "address", "enabled", "power_state", "is_control_domain", "last_active", "originator", "this_host", "network",
}  # fmt: skip
"""Fields that only XAPI itself changes. (A few of others' are settable here that are not in reality: nobody asks.)"""

PARENTS: dict[tuple[str, str], tuple[str, str]] = {
    ("VDI", "SR"): ("SR", "VDIs"),
    ("PBD", "SR"): ("SR", "PBDs"),
    ("PBD", "host"): ("host", "PBDs"),
    ("PIF", "host"): ("host", "PIFs"),
    ("PIF", "network"): ("network", "PIFs"),
    ("VBD", "VDI"): ("VDI", "VBDs"),
    ("VBD", "VM"): ("VM", "VBDs"),
    ("VDI", "snapshot_of"): ("VDI", "snapshots"),
    ("VM", "resident_on"): ("host", "resident_VMs"),
    ("task", "subtask_of"): ("task", "subtasks"),
}
"""(class, field that refers): (class referred to, its list of those who do). The lists are kept by the database."""

OBJECTS_OF = {name.lower(): name for name in FIELDS}
"""Class names as events write them, and as they are called."""
