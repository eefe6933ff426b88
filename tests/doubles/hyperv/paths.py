"""Windows' paths, and the directories that stand for its volumes and shares."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath


class Volumes:
    """`roots`: from a Windows path (`D:\\pool`, `\\\\server\\share`) to the directory that is there. Names keep their case."""

    def __init__(self, roots: dict[str, Path]) -> None:
        self.roots = {PureWindowsPath(name): folder for name, folder in roots.items()}

    def local(self, path: str) -> Path:
        """Where that is here, whether it exists or not; a place where nothing is, for one outside of all roots."""
        asked = PureWindowsPath(path)
        if ".." in asked.parts:
            raise ValueError(path)
        for root, folder in self.roots.items():
            if asked.is_relative_to(root):
                return folder.joinpath(*asked.relative_to(root).parts)
        return Path("/nonexistent").joinpath(*asked.parts[1:])
