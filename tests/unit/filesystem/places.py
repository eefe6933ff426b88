"""What is in a directory that tests look into."""

from __future__ import annotations

from pathlib import Path


def files(pool: Path) -> set[str]:
    return {str(path.relative_to(pool)) for path in pool.rglob("*") if not path.is_dir()}
