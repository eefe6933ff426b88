"""Just enough Markdown to take the project's own pages apart: code blocks, tables, sections, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Page:
    """A Markdown file, or a section of one."""

    path: Path
    text: str

    @classmethod
    def of(cls, name: str) -> Page:
        """By its path in the project."""
        path = ROOT / name
        return cls(path, path.read_text())

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    def blocks(self, language: str) -> list[str]:
        """The contents of fenced code in that language, in order."""
        return [content for found, content in _FENCE.findall(self.text) if found == language]

    @cached_property
    def prose(self) -> str:
        """Everything outside of fenced code."""
        return _FENCE.sub("", self.text)

    @property
    def spans(self) -> list[str]:
        """Inline code."""
        return _SPAN.findall(self.prose)

    @property
    def links(self) -> list[str]:
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """The fragments by which its headings are linked, as GitHub makes them."""
        titles = (title.lower() for _, title in _HEADING.findall(self.prose))
        return {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}

    def section(self, title: str) -> Page:
        """What stands below a heading, up to the next one of its level or above."""
        headings = list(_HEADING.finditer(_FENCE.sub(lambda fence: " " * len(fence[0]), self.text)))
        level, start = next((len(h[1]), h.end()) for h in headings if h[2] == title)
        ends = (h.start() for h in headings if h.start() > start and len(h[1]) <= level)
        return Page(self.path, self.text[start : next(ends, None)])

    def tables(self) -> Iterator[list[list[str]]]:
        """Every table as rows of cells, without its heading."""
        rows: list[list[str]] = []
        for line in [*self.prose.splitlines(), ""]:
            if line.startswith("|"):
                rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            elif rows:
                yield rows[2:]
                rows = []

    def rows(self) -> list[list[str]]:
        """The rows of all tables."""
        return [row for table in self.tables() for row in table]


def code(cell: str) -> list[str]:
    """What stands as code in a cell."""
    return _SPAN.findall(cell)


def pages() -> list[Page]:
    """Every page that users and contributors read."""
    docs = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
    return [Page.of(name) for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "systemd/README.md", *docs)]
