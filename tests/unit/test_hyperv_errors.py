"""What Hyper-V's identifiers and numbers become."""

from __future__ import annotations

import pytest

from hypervisors.hyperv.errors import failure
from stores.errors import Retry


@pytest.mark.parametrize(
    ("identifier", "hresult", "kind", "retry"),
    [
        ("ObjectInUse,Microsoft.Vhd.PowerShell.Cmdlets.ResizeVhd", 0, "ImageLocked", Retry.YES),
        (
            "RemoveFileSystemItemIOError,Microsoft.PowerShell.Commands.RemoveItemCommand",
            -2147024864,
            "ImageLocked",
            Retry.YES,
        ),
        ("ObjectNotFound,Microsoft.Vhd.PowerShell.Cmdlets.GetVhd", 0x80131500, "NotFound", Retry.NO),
        ("StorageAgent.NoSuchMachine", 0x80131501, "NotFound", Retry.NO),
        ("OperationFailed,Microsoft.Vhd.PowerShell.Cmdlets.NewVhd", -2147024784, "HypervRefused", Retry.OPERATOR),
        ("OperationFailed,Microsoft.Vhd.PowerShell.Cmdlets.NewVhd", 0x80070050, "AlreadyExists", Retry.NO),
        ("AccessDenied,Microsoft.HyperV.PowerShell.Commands.GetVM", 0, "AccessDenied", Retry.OPERATOR),
        ("OperationFailed,Microsoft.Vhd.PowerShell.Cmdlets.GetVhd", 0xC03A001A, "HypervRefused", Retry.OPERATOR),
        ("CommandNotFoundException", 0, "HypervRefused", Retry.OPERATOR),
        ("StorageAgent.JobNotStarted", 0, "HypervBusy", Retry.YES),
        ("InvalidParameter,Microsoft.HyperV.PowerShell.Commands.GetVM", 0, "HypervFailure", Retry.NO),
        ("AnIdentifierOfTomorrow", 0xC03A0001, "HypervFailure", Retry.NO),
        (None, None, "HypervFailure", Retry.NO),
    ],
)
def test_identifiers_and_numbers_say_whether_to_try_again(
    identifier: str | None, hresult: int | None, kind: str, retry: Retry
) -> None:
    error = failure({"id": identifier, "hresult": hresult, "message": "whatever, in any language"}, doing="new-vhd")
    assert (error.kind, error.retry, error.details["id"]) == (kind, retry, identifier or "")


def test_messages_name_what_was_done_and_what_was_said() -> None:
    error = failure({"id": "InvalidParameter", "hresult": -1, "message": " zu groß "}, doing="resize-vhd")
    assert error.message == "resize-vhd: Hyper-V answers InvalidParameter (0xffffffff): zu groß"
    assert error.details == {"id": "InvalidParameter", "hresult": "0xffffffff"}
