"""How objects are called in a volume group.

An image has a logical volume of its own name. What nobody shall take for an image has a name that begins with `sa_`: those are
made of digests, since a logical volume's name is short (lvm(8), VALID NAMES).
"""

from __future__ import annotations

import hashlib
import re

from stores.errors import InvalidReference, PolicyRefused
from stores.paths import RECORDS, check_ref
from stores.settings import LvmSettings
from stores.to import PrimaryDataStoreTO

OURS = "sa_"
"""What names begin with that no command may use."""

_LONGEST = 100
"""Bytes. The kernel's name has 127: that of the group, a dash and this one, in which each dash counts twice."""

_CHARACTERS = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
_RESERVED = re.compile(
    r"^\.{1,2}$|^(snapshot|pvmove)|_(cdata|cmeta|cvol|corig|iorig|imeta|mimage|mlog|pmspare|rimage|rmeta|tdata|tmeta|vdata|vorigin|wcorig)"
)


def group_name(path: str | None, pool: str) -> str:
    """Of the `path` of a pool: CloudStack writes `/group`. `InvalidReference`."""
    name = (path or "").removeprefix("/dev/").strip("/")
    if _problem(name) is not None:
        raise InvalidReference(f"pool {pool} needs the name of a volume group as its path, such as /vg0", pool=pool)
    return name


def group_of(to: PrimaryDataStoreTO, settings: LvmSettings, *, shared: bool) -> tuple[str, str | None]:
    """The volume group of a pool, and the thin pool for its images. `PolicyRefused` for a group that the operator did not name,
    and for a thin pool that hosts would share."""
    group = group_name(to.path, to.uuid)
    if group not in settings.groups:
        raise PolicyRefused(
            f"the volume group {group} is none that pools may be; name it in the setting lvm.groups to allow it",
            group=group,
        )
    thin_pool = settings.thin_pools.get(group)
    if shared and thin_pool is not None:
        raise PolicyRefused(
            f"{group} is shared by hosts, of which only one at a time can use its thin pool {thin_pool}; use it as a pool of"
            " type LVM, or take it out of the setting lvm.thin_pools",
            group=group,
        )
    return group, thin_pool


def volume_name(ref: str) -> str:
    """The logical volume that is that object. `InvalidReference` for a ref that none can be called by."""
    components = check_ref(ref)
    if components[0] == RECORDS and len(components) > 1:
        return f"{OURS}h_{_digest(ref)}"
    problem = "has folders, and a volume group has none" if len(components) > 1 else _problem(ref)
    if ref.startswith(OURS):
        problem = f"begins with {OURS}, as the agent's own do"
    if problem is not None:
        raise InvalidReference(f"{ref} {problem}: it cannot be a logical volume's name", ref=ref)
    return ref


def pending_name(ref: str, token: str) -> str:
    """What `token` is making, before it is called `ref`."""
    return f"{OURS}w_{_digest(ref, token)}"


def doomed_name(ref: str) -> str:
    """What was called `ref`, and is being removed."""
    return f"{OURS}d_{_digest(ref)}"


def replaced_name(ref: str) -> str:
    """What was called `ref` until something else took its place."""
    return f"{OURS}r_{_digest(ref)}"


def is_image(name: str) -> bool:
    """Whether a logical volume of that name is an object that listings show."""
    return not name.startswith(OURS)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _problem(name: str) -> str | None:
    if not _CHARACTERS.fullmatch(name):
        return "has characters other than letters, digits, and + _ . -, or begins with -"
    if len(name) + name.count("-") > _LONGEST:
        return f"is longer than {_LONGEST} characters, of which dashes count twice"
    if _RESERVED.search(name):
        return "is reserved by LVM"
    return None
