"""The store contract against every store and every real server there is, and a table of what passed: `make test-stores`.

python -m tests.store_table [options of pytest]
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

CONTRACT = Path(__file__).parent / "contract"

PLACES = {
    "test_memory_store.py": "in memory, and wrappers around it",
    "test_filesystem_store.py": "a directory of this host",
    "test_caching_store.py": "a store through the cache",
    "test_http_store.py": "nginx",
    "test_lvm_store.py": "a volume group of LVM",
    "test_iscsi_store.py": "tgt",
    "test_block_store.py": "devices of this host",
    "test_s3_store.py": "SeaweedFS and moto",
    "test_smb_store.py": "Samba",
    "test_swift_store.py": "OpenStack Swift",
    "test_radosgw_store.py": "Ceph's radosgw",
    "test_rbd.py": "Ceph's RBD",
}
"""Where each file's stores are."""


class Table:
    """A plugin of pytest's that counts by file and class."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file, *inside = report.nodeid.split("::")
        kept = report.when == "call" or report.outcome != "passed"
        if kept:
            self.rows[Path(file).name, inside[0]][report.outcome] += 1

    def text(self) -> str:
        lines = [f"{'store':36}{'where':36}{'kept':>6}{'broken':>8}"]
        for (file, name), counts in self.rows.items():
            if name.startswith("Test"):
                broken = sum(counts.values()) - counts["passed"]
                lines.append(f"{name.removeprefix('Test'):36}{PLACES[file]:36}{counts['passed']:>6}{broken:>8}")
        return "\n".join(lines)


def main(arguments: list[str]) -> int:
    table = Table()
    code = pytest.main(
        ["-q", "-p", "no:cacheprovider", *arguments, *(str(CONTRACT / file) for file in PLACES)], [table]
    )
    print(f"\n{table.text()}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
