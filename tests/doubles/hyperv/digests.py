"""`python -m tests.doubles.hyperv.digests`: what `KNOWN` in `scripts.py` is for the scripts as they are now."""

from __future__ import annotations

from hypervisors.hyperv import texts
from tests.doubles.hyperv.scripts import digest

if __name__ == "__main__":
    for name in sorted(texts.names()):
        print(f'    "{name}": "{digest(texts.text(name))}",')
