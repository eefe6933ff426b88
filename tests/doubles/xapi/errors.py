"""What a call fails with: a code and its parameters, as XAPI's clients see them."""

from __future__ import annotations


class Failure(Exception):
    """`Failure("HANDLE_INVALID", "VDI", ref)`."""

    def __init__(self, code: str, *params: str) -> None:
        super().__init__(code, *params)
        self.code = code
        self.params = params

    @property
    def description(self) -> list[str]:
        return [self.code, *self.params]


class Dropped(Exception):
    """The connection is to be cut, with RST."""


def no_space() -> Failure:
    return Failure("SR_BACKEND_FAILURE_44", "", "There is insufficient space", "")


def bad_size(detail: str) -> Failure:
    return Failure("SR_BACKEND_FAILURE_79", "", f"VDI Invalid size [opterr={detail}]", "")


def chain_too_long() -> Failure:
    return Failure("SR_BACKEND_FAILURE_109", "", "The snapshot chain is too long", "")


def no_changed_blocks(detail: str) -> Failure:
    return Failure(
        "SR_BACKEND_FAILURE_460", "", f"Failed to calculate changed blocks for given VDIs. [opterr={detail}]", ""
    )


def io_error() -> Failure:
    return Failure("VDI_IO_ERROR", "Device I/O errors")
