"""Options and arguments that many subcommands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="STORAGE_AGENT_CONFIG", help="The configuration file.", dir_okay=False),
]
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket", envvar="STORAGE_AGENT_SOCKET", help="The agent's socket. Default: what the configuration says."
    ),
]
CommandId = Annotated[str, typer.Argument(metavar="ID", help="The command's id.")]
JsonFile = Annotated[
    str, typer.Argument(metavar="FILE|-", help="A file with the command as JSON; - reads standard input.")
]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The entry's key, as `cache ls` shows it.")]
PoolName = Annotated[str | None, typer.Option("--pool", help="Only this pool.")]
