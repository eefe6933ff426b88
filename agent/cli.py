"""The command line. Everything beyond the declarations is imported when a subcommand runs, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.cli_options import CommandId, Config, Json, JsonFile, Key, PoolName, Socket
from agent.cli_stored import backups, drain, uploads

_EPILOG = (
    "Exit codes: 0 done; 1 failed for good; 2 wrong usage; 3 failed, trying again may help; "
    "4 failed, an operator has to act first; 5 no agent answered."
)

app = typer.Typer(
    help="The storage agent of a hypervisor host.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to import than everything else that --help needs
    pretty_exceptions_enable=False,  # their tracebacks show local variables
)
commands = typer.Typer(help="Look at commands, and cancel them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(commands, name="commands")
cache = typer.Typer(help="Look at the cache, and look after it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache, name="cache")
app.add_typer(uploads, name="uploads")
app.add_typer(backups, name="backups")
cloudstack = typer.Typer(
    help="Try the way to CloudStack's management servers. Not beside an agent that runs: both would be the same host.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(cloudstack, name="cloudstack")
app.command()(drain)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from agent.version import VERSION

        print(VERSION)
        raise typer.Exit


@app.command()
def run(
    config: Config = None,
    json_: Annotated[bool, typer.Option("--json", help="Log as JSON, whatever the configuration says.")] = False,
) -> None:
    """Run the agent in the foreground, as its systemd unit does."""
    from agent import cli_local

    cli_local.run(config, json_)


@app.command()
def status(socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Show what the agent is doing."""
    from agent import cli_remote

    cli_remote.status(socket, config, json_)


@app.command()
def submit(
    file: JsonFile,
    wait: Annotated[bool, typer.Option(help="Wait for the outcome, with a progress bar on a terminal.")] = True,
    socket: Socket = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Submit a command. The exit code tells its outcome; with --no-wait, whether it was accepted."""
    from agent import cli_remote

    cli_remote.submit(file, wait, socket, config, json_)


@commands.command("ls")
def list_commands(
    state: Annotated[str | None, typer.Option(help="Only commands in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    socket: Socket = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """List commands, the newest first."""
    from agent import cli_remote

    cli_remote.list_commands(state, limit, socket, config, json_)


@commands.command()
def show(command_id: CommandId, socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Show one command as it is now."""
    from agent import cli_remote

    cli_remote.show(command_id, socket, config, json_)


@commands.command()
def cancel(command_id: CommandId, socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Cancel a command, and wait until nothing of it is left."""
    from agent import cli_remote

    cli_remote.cancel(command_id, socket, config, json_)


@app.command()
def explain(file: JsonFile, config: Config = None, json_: Json = False) -> None:
    """Show what would be done for a Copy, Attach or AttachIso, and why. Runs nothing and needs no agent."""
    from agent import cli_local

    cli_local.explain(file, config, json_)


@app.command()
def inspect(
    image: Annotated[Path, typer.Argument(exists=True, help="A local image file.")],
    format_: Annotated[
        str | None, typer.Option("--format", help="What the image is declared to be: QCOW2, RAW, VHD, ...")
    ] = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Show the image gate's verdict on a local file: exit code 1 when it is refused."""
    from agent import cli_local

    cli_local.inspect(image, format_, config, json_)


@app.command()
def show_config(
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Print the sample file with every default instead.")
    ] = False,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Show the configuration in force, and where each value comes from."""
    from agent import cli_local

    cli_local.show_config(defaults, config, json_)


@app.command()
def check_config(config: Config = None, json_: Json = False) -> None:
    """Check the configuration, and the users, groups and certificates that it names."""
    from agent import cli_local

    cli_local.check_config(config, json_)


@app.command()
def mounter(config: Config = None) -> None:
    """Mount or unmount one NFS export for the agent: for storage-agent-mounter@.service, which starts it as root."""
    from agent import cli_local

    cli_local.mounter(config)


@app.command()
def selftest(
    xen: Annotated[
        list[str], typer.Option(help="A host of a pool of XenServer or XCP-ng: https://ADDRESS. Once for each host.")
    ],
    sr: Annotated[str, typer.Option(help="The uuid or name of the SR to try things in.")],
    iso_sr: Annotated[str | None, typer.Option(help="An ISO SR to try an upload in.")] = None,
    user: Annotated[str, typer.Option(help="A user with the role pool-operator.")] = "root",
    password_file: Annotated[Path | None, typer.Option(help="A file that holds the password.", dir_okay=False)] = None,
    ca_file: Annotated[Path | None, typer.Option(help="Certificates (PEM) to trust.", dir_okay=False)] = None,
    fingerprint: Annotated[
        list[str] | None, typer.Option(help="SHA-256 of a host's certificate; once for each host, in their order.")
    ] = None,
    json_: Json = False,
) -> None:
    """Try on a pool of hosts what the agent takes for granted, in disks of its own, of which nothing is left."""
    from agent import cli_selftest

    cli_selftest.xen(xen, sr, iso_sr, user, password_file, ca_file, fingerprint or (), json_)


@app.command()
def check_store(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help="A file with the store as JSON, as in commands, that only its owner may read; - reads standard input.",
        ),
    ],
    config: Config = None,
    json_: Json = False,
) -> None:
    """Try on a store what the agent relies on, below a name of its own, and leave nothing: exit code 1 when a promise is
    broken. Needs no agent."""
    from agent import cli_check_store

    cli_check_store.check_store(file, config, json_)


@cache.command("stats")
def cache_stats(socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Show the pools with their numbers."""
    from agent import cli_cache

    cli_cache.stats(socket, config, json_)


@cache.command("ls")
def cache_list(
    pool: PoolName = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many of each pool.")] = 100,
    socket: Socket = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """List entries."""
    from agent import cli_cache

    cli_cache.list_entries(pool, limit, socket, config, json_)


@cache.command("show")
def cache_show(key: Key, socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Show one entry, and who pins it."""
    from agent import cli_cache

    cli_cache.show(key, socket, config, json_)


@cache.command("explain")
def cache_explain(
    wanted: Annotated[
        str, typer.Argument(metavar="OBJECT", help="A key, the beginning of one, or the object's path in its store.")
    ],
    socket: Socket = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Say why an object is in the cache, and why it may not go."""
    from agent import cli_cache

    cli_cache.explain(wanted, socket, config, json_)


@cache.command("pin")
def cache_pin(
    key: Key,
    reason: Annotated[str, typer.Option(help="Why it stays, for those who look.")] = "",
    socket: Socket = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Keep an entry until it is unpinned, over restarts."""
    from agent import cli_cache

    cli_cache.pin(key, reason, socket, config, json_)


@cache.command("unpin")
def cache_unpin(key: Key, socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Take back what `cache pin` did, and nobody else's pin."""
    from agent import cli_cache

    cli_cache.unpin(key, socket, config, json_)


@cache.command("evict")
def cache_evict(key: Key, socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Let an entry go now. Refused while somebody needs it."""
    from agent import cli_cache

    cli_cache.evict(key, socket, config, json_)


@cache.command("prefetch")
def cache_prefetch(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help="A file with the object as JSON, as in the `data` of a command; - reads standard input.",
        ),
    ],
    socket: Socket = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Bring an object into the cache, with its progress. A journalled command."""
    from agent import cli_cache

    cli_cache.prefetch(file, socket, config, json_)


@cache.command("scrub")
def cache_scrub(
    pool: PoolName = None,
    older_than: Annotated[
        float, typer.Option(min=0, help="Only entries that were proved in full longer ago than this, in days.")
    ] = 0,
    rate: Annotated[int, typer.Option(min=1, help="MiB per second to read at most.")] = 64,
    socket: Socket = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Read entries in full and compare their digests. A journalled command; the timer calls this."""
    from agent import cli_cache

    cli_cache.scrub(pool, older_than, rate, socket, config, json_)


@cache.command("reconcile")
def cache_reconcile(pool: PoolName = None, socket: Socket = None, config: Config = None, json_: Json = False) -> None:
    """Compare ledger and directory. Unknown files are reported, never deleted."""
    from agent import cli_cache

    cli_cache.reconcile(pool, socket, config, json_)


CloudStackRole = Annotated[
    str | None, typer.Option("--role", help="routing or secondary-storage. Default: the first of cloudstack.roles.")
]


@cloudstack.command("ping")
def cloudstack_ping(config: Config = None, json_: Json = False) -> None:
    """See which of the servers answer, and who they say they are. Nothing is asked of them."""
    from agent import cli_cloudstack

    cli_cloudstack.ping(config, json_)


@cloudstack.command("login-check")
def cloudstack_login_check(
    role: CloudStackRole = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the server's word.")] = 60,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Introduce this agent, see whether it is taken in, and leave."""
    from agent import cli_cloudstack

    cli_cloudstack.login_check(role, timeout, config, json_)


@cloudstack.command("trace")
def cloudstack_trace(
    role: CloudStackRole = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="End after so many. Default: at Ctrl-C.")] = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Keep a link up and print what it says and hears, secrets masked. Every command is refused, none is run."""
    from agent import cli_cloudstack

    cli_cloudstack.trace(role, seconds, config, json_)


def main() -> None:
    """The console script."""
    app()
