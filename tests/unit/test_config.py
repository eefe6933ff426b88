"""Configuration: sources and their order, strictness, and the sample file against the model, both ways."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize

from agent.config import Config, LogLevel, split_listen
from agent.config_load import ConfigError, load, section_model
from agent.config_text import effective, sample, toml_value
from agent.security import Role
from hypervisors.contract import HypervisorType

SAMPLE = Path(__file__).parents[2] / "agent" / "storage-agent.toml.sample"


def written(directory: Path, text: str, name: str = "storage-agent.toml") -> Path:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def problems(file: Path, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(file, environment or {})
    return refused.value.message.splitlines()


def options() -> set[tuple[str, str]]:
    return {(section, key) for section in Config.model_fields for key in section_model(section).model_fields}


# ------------------------------------------------------------------------------------------------------- sample


def test_the_sample_file_is_what_the_model_generates() -> None:
    assert SAMPLE.read_text() == sample(), "write it anew: storage-agent show-config --defaults"


def test_the_sample_is_valid_and_sets_nothing(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, sample()), {})
    assert loaded.config == Config()
    assert loaded.sources == {}


def test_the_sample_uncommented_is_the_defaults_and_names_every_option(tmp_path: Path) -> None:
    text = re.sub(r"^#(?! |$)", "", sample(), flags=re.MULTILINE)
    loaded = load(written(tmp_path, text), {})
    assert loaded.config == Config()
    unset = {(s, k) for s, k in options() if getattr(getattr(Config(), s), k) is None}
    assert {tuple(name.split(".")) for name in loaded.sources} == options() - unset


def test_every_option_is_described_and_every_example_is_valid(tmp_path: Path) -> None:
    for section, key in options():
        option = section_model(section).model_fields[key]
        assert option.description, key
        assert option.default is not None or option.examples, f"{key} has neither a default nor an example"
        for example in option.examples or ():
            assert f"# Example: {key} = {toml_value(example)}\n" in sample()
    examples = re.sub(r"^# Example: ", "", sample(), flags=re.MULTILINE)
    examples = re.sub(r"^# .*", "", examples, flags=re.MULTILINE)
    loaded = load(written(tmp_path, examples), {"CREDENTIALS_DIRECTORY": "/run/credentials/x"})
    assert loaded.config.api.tls_key == Path("/run/credentials/x/agent-key")
    assert loaded.config.api.tls_roles["DNS:management.example.org"] is Role.COMMAND


def test_every_option_is_used() -> None:
    sources = [path for path in SAMPLE.parent.rglob("*.py") if not path.name.startswith("config")]
    code = "\n".join(path.read_text() for path in sources)
    assert [f"{section}.{key}" for section, key in options() if not re.search(rf"\.{key}\b", code)] == []


def test_what_is_in_force_can_be_read_back(tmp_path: Path) -> None:
    file = written(tmp_path, '[transfer]\nmemory = "64MiB"\n[pools]\nroots = ["/a", "/b"]\n')
    loaded = load(file, {"STORAGE_AGENT__LOGS__LEVEL": "debug"})
    text = effective(loaded)
    assert f'memory = "64MiB"  # {file}\n' in text
    assert 'level = "debug"  # $STORAGE_AGENT__LOGS__LEVEL\n' in text
    assert "# ca_file is not set\n" in text
    assert load(written(tmp_path, text, "again.toml"), {}).config == loaded.config


@given(
    st.recursive(
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    )
)
def test_any_value_is_written_as_toml_reads_it(value: Any) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


@given(st.integers(0, 2**60))
def test_sizes_are_written_without_loss(size: int) -> None:
    text = tomllib.loads(f"value = {toml_value(ByteSize(size))}")["value"]
    assert ByteSize._validate(text, None) == size  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ sources


def test_later_sources_win_and_tables_merge(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '[agent]\nconcurrency = 1\nqueue_limit = 1\n[logs]\nlevel = "error"\n'
        '[pools]\nroots = ["/a"]\n[pools.nfs_mounts]\n"nfs://h/a" = "/mnt/a"\n',
    )
    written(tmp_path / "storage-agent.d", "[agent]\nconcurrency = 3\n", "20-b.toml")
    written(
        tmp_path / "storage-agent.d",
        '[agent]\nconcurrency = 2\n[pools]\nroots = ["/b"]\nnfs_mounts = { "nfs://h/b" = "/mnt/b" }\n',
        "10-a.toml",
    )
    written(tmp_path / "storage-agent.d", "not read", "30-c.toml.disabled")
    loaded = load(file, {"STORAGE_AGENT__LOGS__LEVEL": "debug", "STORAGE_AGENT_SOCKET": "/ignored"})
    assert loaded.config.agent.concurrency == 3
    assert loaded.config.agent.queue_limit == 1
    assert loaded.config.pools.roots == (Path("/b"),)
    assert loaded.config.pools.nfs_mounts == {"nfs://h/a": Path("/mnt/a"), "nfs://h/b": Path("/mnt/b")}
    assert loaded.config.logs.level is LogLevel.DEBUG
    assert loaded.sources["agent.concurrency"].endswith("20-b.toml")
    assert loaded.sources["logs.level"] == "$STORAGE_AGENT__LOGS__LEVEL"
    assert [path.name for path in loaded.files] == ["storage-agent.toml", "10-a.toml", "20-b.toml"]


def test_the_environment_takes_plain_text_and_toml_lists(tmp_path: Path) -> None:
    loaded = load(
        written(tmp_path, ""),
        {
            "STORAGE_AGENT__AGENT__CONCURRENCY": "12",
            "STORAGE_AGENT__AGENT__HYPERVISOR": "KVM",
            "STORAGE_AGENT__URLS__ALLOW_HTTP": "true",
            "STORAGE_AGENT__URLS__PORTS": "[8080]",
            "STORAGE_AGENT__POOLS__ROOTS": '["/srv/pools"]',
            "STORAGE_AGENT__API__TLS_ROLES": '{ "CN=m" = "view" }',
        },
    ).config
    assert (loaded.agent.concurrency, loaded.agent.hypervisor) == (12, HypervisorType.KVM)
    assert loaded.urls.allow_http
    assert loaded.urls.ports == (8080,)
    assert loaded.pools.roots == (Path("/srv/pools"),)
    assert loaded.api.tls_roles == {"CN=m": Role.VIEW}


def test_the_default_file_may_be_missing_a_named_one_may_not(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.toml") == [f"{tmp_path}/none.toml: no such configuration file"]


def test_the_configuration_does_not_change_once_loaded(tmp_path: Path) -> None:
    config = load(written(tmp_path, ""), {}).config
    with pytest.raises(ValueError, match="frozen"):
        config.agent.concurrency = 3  # type: ignore[misc]


# ----------------------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[agent]\nconcurency = 1\n", "no option concurency in [agent] (did you mean concurrency?)"),
        ("[agnet]\nconcurrency = 1\n", "no section [agnet] (did you mean agent?)"),
        ("[zzz]\na = 1\n", "no section [zzz] (there are: agent, pools, "),
        ("concurrency = 1\n", "concurrency stands outside of any [section]"),
        ("[agent\n", "is not TOML: "),
        ("[agent]\nconcurrency = 0\n", "agent.concurrency: Input should be greater than 0"),
        ('[agent]\nhypervisor = "Qemu"\n', "agent.hypervisor: Input should be 'KVM', 'XenServer' or 'Hyperv'"),
        ('[agent]\nstate_dir = "var/x"\n', "agent.state_dir: needs an absolute path without '..'"),
        ('[pools]\nroots = ["/a/../b"]\n', "pools.roots.0: needs an absolute path without '..'"),
        ('[urls]\nallow_networks = ["10.0.0.0/33"]\n', "urls.allow_networks.0: "),
        ("[urls]\nports = [0]\n", "urls.ports.0: "),
        ('[transfer]\nmemory = "1MiB"\n', "transfer.memory: "),
        ("[uploads]\nunstored_share = 1.1\n", "uploads.unstored_share: "),
        (
            "[uploads]\nfirst_retry_s = 9\nlast_retry_s = 3\n",
            "uploads: first_retry_s is 9 and needs to be at most last",
        ),
        ('[api]\nmode = "660"\n', "api.mode: "),
        ('[api]\ntls_roles = { "management" = "command" }\n', "api.tls_roles: 'management' needs to begin with DNS:"),
        ('[api]\ntls_roles = { "CN=m" = "admin" }\n', "api.tls_roles.CN=m: Input should be 'view', 'operate' or 'comm"),
        ('[api]\ntcp_listen = "8250"\n', "api.tcp_listen: needs HOST:PORT"),
        (
            '[api]\ntcp_listen = "[::]:8250"\ntls_cert = "/c.pem"\n',
            "api: tcp_listen needs mutual TLS, and tls_key, tls_client_ca is not set",
        ),
        ('[api]\ntls_key = "credential:k"\n', "api.tls_key: names a systemd credential, but $CREDENTIALS_DIRECTORY is"),
    ],
)
def test_a_problem_says_where_it_stands_and_what_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    file = written(tmp_path, text)
    assert problems(file)[0].startswith(f"{file}: {expected}")


def test_all_problems_are_told_at_once_each_with_its_own_source(tmp_path: Path) -> None:
    file = written(tmp_path, "[agent]\nconcurrency = 0\n")
    drop_in = written(tmp_path / "storage-agent.d", "[transfer]\nthreads = 0\n", "a.toml")
    found = problems(file, {"STORAGE_AGENT__LOGS__LEVEL": "loud"})
    assert [line.split(": ")[:2] for line in found] == [
        [str(file), "agent.concurrency"],
        [str(drop_in), "transfer.threads"],
        ["$STORAGE_AGENT__LOGS__LEVEL", "logs.level"],
    ]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("STORAGE_AGENT__LEVEL", "x", "needs the form STORAGE_AGENT__SECTION__KEY"),
        ("STORAGE_AGENT__LOGS__LEVL", "x", "no option levl in [logs] (did you mean level?)"),
        ("STORAGE_AGENT__URLS__PORTS", "[1", "is not a TOML value"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, expected: str) -> None:
    assert problems(written(tmp_path, ""), {name: value})[0].startswith(f"${name}: {expected}")


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_credential_name_stays_in_its_directory(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, f'[api]\ntls_key = "credential:{name}"\n')
    found = problems(file, {"CREDENTIALS_DIRECTORY": "/run/credentials/x"})
    assert found == [f"{file}: api.tls_key: needs a plain credential name after 'credential:'"]


def test_an_unreadable_file_is_a_problem_not_a_traceback(tmp_path: Path) -> None:
    file = written(tmp_path, "")
    directory = tmp_path / "storage-agent.d" / "a.toml"
    directory.mkdir(parents=True)
    assert problems(file) == [f"{directory}: cannot be read: Is a directory"]
    directory.rmdir()
    directory.write_bytes(b"\xff\xfe")
    assert problems(file)[0].startswith(f"{directory}: is not TOML: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("host.example:65535", ("host.example", 65535))],
)
def test_listen_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_listen(text) == expected


@pytest.mark.parametrize("text", ["", ":80", "h", "h:", "h:-1", "h:65536", "::1:80", "[h]:80", "h:80a"])
def test_wrong_listen_addresses(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the message is checked above
        split_listen(text)
