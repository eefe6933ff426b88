"""How long the parts of a multipart upload are. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from stores.contract import GiB, MiB
from stores.errors import TooLarge

# Amazon S3's limits for multipart uploads ("Amazon S3 multipart upload limits").
MAX_PARTS = 10_000
MAX_PART = 5 * GiB
# What every part but the last must have; not more, since a stream keeps one: eight of them have 40 MiB.
SMALLEST_PART = 5 * MiB
# Parts of files grow up to this before their number does: each costs a signature and an answer, and is what a broken
# connection sends again.
USUAL_PART = 64 * MiB
USUAL_PARTS = 32


@dataclass(frozen=True, slots=True)
class Cut:
    """How what comes as a stream is cut into parts. Bytes; other limits than S3's are for tests."""

    smallest: int = SMALLEST_PART
    """An even number. Longer parts than this are not kept in memory."""
    most: int = MAX_PARTS

    @property
    def piece(self) -> int:
        """In pieces of this length longer parts pass through the memory."""
        return self.smallest // 2

    def length(self, number: int, size: int | None) -> int:
        """Length of part `number` (from 1) of an object of `size` bytes: a multiple of the smallest.

        With a known size all parts are equal and suffice for it. With an unknown one the first nine twentieths of them
        have the smallest length, and from there on it doubles with every twentieth: 5 MiB up to 22 GiB, then at most a 450th
        of what was sent, 7.2 TiB in all. `TooLarge` beyond what S3 can hold.
        """
        if size is not None:
            pieces = -(-size // (self.most * self.smallest))
            length = max(1, pieces) * self.smallest
        else:
            step = max(1, self.most // 20)
            small = round(self.most * 9 / 20)
            doubled = max(0, number - small + step - 1) // step
            length = min(self.smallest << doubled, MAX_PART)
        if number > self.most:
            raise TooLarge(
                f"S3 takes {self.most} parts, and they do not suffice: an object that is so large has to tell its size before",
                limit=self.most,
                seen=number,
            )
        if length > MAX_PART:
            limit = self.most * MAX_PART
            raise TooLarge(f"an S3 object holds at most {limit} bytes", limit=limit, seen=size)
        return length


S3_CUT = Cut()


def file_part_length(size: int) -> int:
    """The same for an object that is sent from a file, which every part can be read from again."""
    even = -(-size // USUAL_PARTS)
    return max(S3_CUT.length(1, size), min(USUAL_PART, -(-even // MiB) * MiB))
