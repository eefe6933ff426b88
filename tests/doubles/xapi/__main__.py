"""`python -m tests.doubles.xapi FOLDER [SETTINGS]`: a pool, until SIGTERM. SETTINGS: the fields of `Settings` as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.doubles.xapi.remote import serve
from tests.doubles.xapi.settings import Settings

asyncio.run(serve(Path(sys.argv[1]), Settings(**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))))
