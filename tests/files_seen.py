"""What comes into being on this machine while something runs."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Watch:
    """Every file that was seen anywhere but in the pool."""

    root: Path
    pool: Path
    seen: dict[str, int] = field(default_factory=dict)  # by path below `root`: the largest size in bytes

    async def forever(self) -> None:
        while True:
            for directory, _, names in os.walk(self.root):  # folders come and go meanwhile, which it does not mind
                if not Path(directory).is_relative_to(self.pool):
                    for name in names:
                        self._note(Path(directory, name))
            await asyncio.sleep(0.01)

    def _note(self, path: Path) -> None:
        try:
            size = path.lstat().st_size
        except FileNotFoundError:
            return
        name = str(path.relative_to(self.root))
        self.seen[name] = max(size, self.seen.get(name, 0))
