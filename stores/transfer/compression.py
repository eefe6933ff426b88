"""Expanding what is stored compressed: gzip, bzip2, xz and zstd, within bounds.

A compressed object is input from outside, a bomb included. So no call puts out more than one piece, however far its input
would expand; output stops at an absolute limit and at a ratio; and a decoder that wants a dictionary or window of more than
`DECODER_MEMORY` is refused. Members (gzip), streams (bzip2, xz) and frames (zstd) may follow one another, as the formats
allow; anything else behind the last one is damage, and so is an end before the end.

Formats: RFC 1952 (gzip), the .xz file format 1.1.0, RFC 8878 (zstd), and the bzip2 manual.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Protocol, TypeAlias

from stores.contract import KiB, MiB
from stores.errors import IntegrityError, TooLarge

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 1 * MiB
"""The most that one call of a decoder puts out."""

INPUT_SLICE = 16 * KiB
"""How much a decoder gets at a time: what it does not use, it gives back as a copy, and that must not be much."""

DECODER_MEMORY = 128 * MiB
"""The most for a dictionary or window: `xz -9` needs 65 MiB, zstd's own default bound is 128 MiB (window log 27)."""

MAX_RATIO = 1000.0
"""Output bytes for each byte of input, once more than `RATIO_FREE` came out. A deflate stream cannot pass 1032."""

RATIO_FREE = 64 * MiB
"""Output that is never held against the ratio: an image that begins with a long run of zeroes is no bomb."""


Run: TypeAlias = Callable[[Callable[[], bytes]], Awaitable[bytes]]
"""How a blocking call gets into a thread: `TransferEngine.run`."""


class _Decoder(Protocol):
    """One member, stream or frame. The standard library's decompressors are such."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes: ...


class _GzipMember:
    """zlib's decompressor with the interface of the others, which keep what they have not used by themselves."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # 16: a gzip header and trailer, both checked
        self._cut_short = False

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not (self.eof or self._cut_short)

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        output = self._inner.decompress(self._inner.unconsumed_tail or data, max_length)
        # Output may be pending inside zlib even when it has taken all its input.
        self._cut_short = len(output) == max_length or bool(self._inner.unconsumed_tail)
        return output


def _xz_stream() -> _Decoder:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=DECODER_MEMORY)


def _zstd_frame() -> _Decoder:
    window_log = DECODER_MEMORY.bit_length() - 1
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gzip": _GzipMember,
    "bzip2": bz2.BZ2Decompressor,
    "xz": _xz_stream,
    "zstd": _zstd_frame,
}
_DAMAGE = (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError, zstd.ZstdError)
"""What the decoders raise for bad input; bz2 says OSError."""

_GZIP_DEFLATE = b"\x1f\x8b\x08"
_XZ = b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)  # frames of metadata; pzstd begins with one
_BZIP2_BLOCK = b"\x31\x41\x59\x26\x53\x59"
_BZIP2_END = b"\x17\x72\x45\x38\x50\x90"


def sniff_compression(head: bytes) -> str | None:
    """gzip, bzip2, xz or zstd, when `head` (at least 10 bytes, or the whole object) begins like one of them."""
    if head.startswith(_GZIP_DEFLATE):
        return "gzip"
    if head.startswith(_XZ):
        return "xz"
    if head.startswith(_ZSTD) or int.from_bytes(head[:4], "little") in _ZSTD_SKIPPABLE:
        return "zstd"
    # "BZh" alone is three letters; the level and the first block's own magic make it a signature.
    if head.startswith(b"BZh") and head[3:4] in b"123456789" and head[4:10] in (_BZIP2_BLOCK, _BZIP2_END):
        return "bzip2"
    return None


class Expander:
    """The decoding itself, without I/O: `feed` some input, take `piece`s until one is empty, and so on; then `finish`."""

    def __init__(self, compression: str, *, limit: int | None, max_ratio: float = MAX_RATIO) -> None:
        """ValueError for a compression that is not one of the four."""
        if compression not in _DECODERS:
            raise ValueError(f"unknown compression {compression!r}: known are {', '.join(_DECODERS)}")
        self._compression = compression
        self._limit = limit
        self._max_ratio = max_ratio
        self._decoder: _Decoder | None = None  # None: between members
        self._members = 0
        self._padding = 0  # NUL bytes since the last xz stream
        self._input = memoryview(b"")
        self._position = 0  # in `_input`
        self._taken_before = 0  # input of earlier calls of `feed`
        self._put_out = 0

    def feed(self, data: bytes | memoryview) -> None:
        """More input, which must stay as it is until `piece` returned nothing."""
        self._taken_before += self._position
        self._input, self._position = memoryview(data), 0

    def piece(self) -> bytes:
        """The next at most `PIECE` bytes of output; nothing means that more input is needed, if there is any."""
        while True:
            if self._decoder is None:
                self._skip_padding()
                if self._position == len(self._input):
                    return b""
                self._decoder = self._next_member()
            data = memoryview(b"")
            if self._decoder.needs_input:
                data = self._input[self._position : self._position + INPUT_SLICE]
                if not data:
                    return b""
            self._position += len(data)
            try:
                output = self._decoder.decompress(data, PIECE)
            except _DAMAGE as error:
                raise self._damaged(f"cannot be decoded ({error})") from error
            if self._decoder.eof:
                # A decoder is fed only when it has used up what it had: what it gives back is of this very input.
                self._position -= len(self._decoder.unused_data)
                self._decoder = None
            if output:
                self._put_out += len(output)
                self._check_bounds()
                return output

    def finish(self) -> None:
        """There is no more input: `IntegrityError` unless this is where it may end."""
        if self._decoder is not None or not self._members:
            raise self._damaged("ends too early")
        self._check_padding()

    def _next_member(self) -> _Decoder:
        self._check_padding()
        self._padding = 0
        self._members += 1
        return _DECODERS[self._compression]()

    def _skip_padding(self) -> None:
        """Only xz allows padding: NUL bytes after a stream, in fours (section 2.2 of its specification)."""
        if self._compression != "xz" or not self._members:
            return
        while ahead := bytes(self._input[self._position : self._position + INPUT_SLICE]):
            zeros = len(ahead) - len(ahead.lstrip(b"\x00"))
            self._position += zeros
            self._padding += zeros
            if zeros < len(ahead):
                return

    def _check_padding(self) -> None:
        if self._padding % 4:
            raise self._damaged("has padding that is not a multiple of four bytes")

    def _check_bounds(self) -> None:
        if self._limit is not None and self._put_out > self._limit:
            raise TooLarge(
                f"the object expands ({self._compression}) to more than the {self._limit} bytes that it may have",
                limit=self._limit,
                seen=self._put_out,
            )
        taken = self._taken_before + self._position
        if self._put_out > RATIO_FREE and self._put_out > self._max_ratio * taken:
            raise TooLarge(
                f"{taken} bytes of the object expand ({self._compression}) to more than {self._max_ratio:g} times as many: "
                "taken for a decompression bomb",
                limit=int(self._max_ratio * taken),
                seen=self._put_out,
            )

    def _damaged(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"the object's {self._compression} data {what}: check how it was made and stored",
            compression=self._compression,
            input_bytes=self._taken_before + self._position,
            output_bytes=self._put_out,
        )


async def expand(
    stream: AsyncIterable[memoryview],
    compression: str,
    *,
    run: Run,
    limit: int | None,
    max_ratio: float = MAX_RATIO,
) -> AsyncGenerator[memoryview, None]:
    """What `stream` holds, expanded, in order, in pieces of at most `PIECE` bytes; decoding happens in `run`'s threads.

    A piece that would pass `limit` bytes in all, or `max_ratio`, is not put out: `TooLarge`. Damaged or truncated input, and
    anything behind its end, is `IntegrityError`: only a caller that iterated to the end knows that the input was whole.
    Whoever may stop before the end closes the generator (`aclosing`). `stream` is not closed.
    """
    expander = Expander(compression, limit=limit, max_ratio=max_ratio)
    async for data in stream:
        expander.feed(data)
        while piece := await run(expander.piece):
            yield memoryview(piece)
    expander.finish()
