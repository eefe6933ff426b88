"""The file with a ledger's URL: what is taken from it, what is refused, and that no password shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.ledger_file import LedgerFromFile, read_url
from stores.errors import AccessDenied


@pytest.mark.parametrize(
    ("text", "url", "password"),
    [
        ("postgresql://agent:p%40ss@db.example.org:5433/cache\n", "agent@db.example.org:5433/cache", "p@ss"),
        ("postgres://agent@db/cache", "agent@db/cache", None),
        ("postgresql://agent:secret@[::1]/cache?ssl=require", "agent@[::1]/cache?ssl=require", "secret"),
    ],
)
def test_url_and_password_come_apart(tmp_path: Path, text: str, url: str, password: str | None) -> None:
    file = tmp_path / "ledger"
    file.write_text(text)
    found, secret = read_url(file)
    assert found == f"postgresql+asyncpg://{url}"
    assert (secret.reveal() if secret else None) == password


@pytest.mark.parametrize("text", ["", "mysql://u:hidden@h/d", "postgresql://u:hidden@h", "postgresql://u:hidden@[h/d"])
def test_anything_else_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ledger"
    file.write_text(text)
    with pytest.raises(AccessDenied) as refused:
        read_url(file)
    assert str(file) in refused.value.message
    assert "hidden" not in str(refused.value.details) + refused.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="No such file"):
        read_url(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(AccessDenied, match="no text"):
        read_url(tmp_path / "binary")


async def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    ledger = LedgerFromFile(tmp_path / "missing", "pool")
    with pytest.raises(AccessDenied):
        await ledger.transact(lambda tx: None)
    await ledger.aclose()
