"""What a pool is like."""

from __future__ import annotations

from dataclasses import dataclass

GiB = 1 << 30


LIES = (
    "answer-late",  # the answer to a PUT comes after its body
    "beyond-taken",  # what is sent beyond the end of a disk is dropped, and the task succeeds
    "bits-turned",  # the first changed block is the lowest bit
    "clone-shared",  # what is written to a clone is in its source too
    "config-lost",  # copies of a VDI have no other_config
    "delta-all",  # base= gives all blocks that the disk has
    "delta-short",  # base= leaves one block out
    "duplicates",  # add_to_ replaces what there is
    "length-believed",  # a Content-Length is taken for what is to be written, also of a body in frames
    "size-down",  # VDI.create rounds down
    "snapshot-shared",  # what is written to a disk is in its snapshots too
)


@dataclass(frozen=True)
class Settings:
    """Sizes are bytes, times seconds."""

    hosts: int = 2
    user: str = "root"
    password: str = "correct horse"
    nfs_size: int = 4096 * GiB
    ext_size: int = 256 * GiB
    lvm_size: int = 256 * GiB
    gc_delay_s: float = 0.02
    """From the destruction of a VDI until its space is free and chains are shorter."""
    attach_s: float = 0.0
    """What attaching a VDI to dom0 takes."""
    copy_block_s: float = 0.0
    """What VDI.copy takes for 2 MiB."""
    data_destroy_wait_s: float = 4.0
    json_numbers: bool = True
    """64 bit integers in JSON as numbers, and otherwise as text."""
    iso_uploads: bool = True
    """Whether VDI.create works in the ISO SR."""
    qcow2: bool = False
    """Whether hosts have what format=qcow2 needs."""
    lies: tuple[str, ...] = ()
    """What is not as public sources and documents say, of `LIES`."""

    def __post_init__(self) -> None:
        if unknown := set(self.lies) - set(LIES):
            raise ValueError(f"{unknown} are none of {LIES}")
