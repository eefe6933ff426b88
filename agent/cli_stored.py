"""Subcommands about what has to get to the stores, and what is there, as declarations: see `agent.cli`."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli_options import Config, Json, Socket

uploads = typer.Typer(
    help="Look at uploads that no store has yet, and look after them.", no_args_is_help=True, rich_markup_mode=None
)

backups = typer.Typer(
    help="Look at backups in an image store, and check them.", no_args_is_help=True, rich_markup_mode=None
)

UploadId = Annotated[str, typer.Argument(metavar="ID", help="The upload's id, as `uploads ls` shows it.")]
SomeUpload = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="The upload's id, as `uploads ls` shows it. Without it: all.")
]
BackupFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE|-",
        help="A file with the backup as JSON, as in the `source` of a Copy, or with its store alone; - reads standard input.",
    ),
]
Path_ = Annotated[str | None, typer.Option("--path", help="The path in the store, where the file does not say it.")]
Timeout = Annotated[float | None, typer.Option(min=0, help="At most so many seconds. Without it: as long as it takes.")]


@uploads.command("ls")
def uploads_list(socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """List uploads, the oldest first."""
    from agent import cli_uploads

    cli_uploads.list_uploads(socket, config, json_)


@uploads.command("show")
def uploads_show(upload: UploadId, socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Show one upload as it is now."""
    from agent import cli_uploads

    cli_uploads.show(upload, socket, config, json_)


@uploads.command("wait")
def uploads_wait(
    upload: SomeUpload = None,
    timeout: Timeout = None,
    socket: Socket = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Wait until it is stored: exit code 3 when it is not yet, 4 when it needs an operator, 1 when it was cancelled."""
    from agent import cli_uploads

    cli_uploads.wait(upload, timeout, socket, config, json_)


@uploads.command("retry")
def uploads_retry(upload: SomeUpload = None, socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Try it now, also where it had failed for good."""
    from agent import cli_uploads

    cli_uploads.retry(upload, socket, config, json_)


@uploads.command("cancel")
def uploads_cancel(upload: UploadId, socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Give an upload up: its bytes go from this host, and what the store has of it as well."""
    from agent import cli_uploads

    cli_uploads.cancel(upload, socket, config, json_)


@backups.command("verify")
def backups_verify(
    file: BackupFile, path: Path_ = None, socket: Socket = None, config: Config = None, json_: Json = False
) -> None:
    """Read a backup, and all that it builds on, and compare it with the manifests: exit code 1 when something is wrong."""
    from agent import cli_backups

    cli_backups.verify(file, path, socket, config, json_)


@backups.command("tree")
def backups_tree(
    file: BackupFile, path: Path_ = None, socket: Socket = None, config: Config = None, json_: Json = False
) -> None:
    """Show the backups below a path, and which builds on which."""
    from agent import cli_backups

    cli_backups.tree(file, path, socket, config, json_)


def drain(
    wait: Annotated[bool, typer.Option(help="Wait until everything is stored.")] = False,
    end: Annotated[bool, typer.Option("--end", help="Take commands again.")] = False,
    timeout: Timeout = None,
    socket: Socket = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Empty the agent for maintenance: no new commands, and uploads to their end. Exit code 0 says that everything is stored,
    3 that it is not yet, 4 that what is left needs an operator."""
    from agent import cli_uploads

    cli_uploads.drain(wait, end, timeout, socket, config, json_)
