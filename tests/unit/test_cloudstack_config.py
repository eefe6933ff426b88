"""The section about management servers: what it needs once there is one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from agent.config import CloudStackSection, Config

CLOUDSTACK = {"servers": ["ms1"], "zone": "1", "pod": "1", "cluster": "1", "ca_file": "/etc/ca.pem"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"servers": ["a b"]}, "needs to be HOST"),
        ({"zone": ""}, "zone is not set"),
        ({"cluster": None, "pod": ""}, "pod, cluster is not set"),
        ({"ca_file": None}, "which are believed"),
        ({"tls_cert": "/etc/agent.pem"}, "need one another"),
        ({"roles": []}, "at least 1"),
        ({"guid": "kvm7"}, "should match pattern"),
        ({"staging": ["nfs://h/e"]}, "need one another"),
        ({"staging_file": "/etc/staging.toml"}, "need one another"),
        ({"staging": ["cifs://h/e"], "staging_file": "/etc/staging.toml"}, "nfs://host/export"),
        ({"staging": ["nfs:///e"], "staging_file": "/etc/staging.toml"}, "nfs://host/export"),
        ({"staging": ["nfs://h/../e"], "staging_file": "/etc/staging.toml"}, "nfs://host/export"),
    ],
)
def test_links_need_what_servers_ask_for(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        CloudStackSection.model_validate(CLOUDSTACK | change)


@pytest.mark.parametrize(
    "change", [{}, {"ca_file": None, "allow_unverified": True}, {"cluster": None, "roles": ["secondary-storage"]}]
)
def test_links_that_are_configured(change: dict[str, Any]) -> None:
    assert CloudStackSection.model_validate(CLOUDSTACK | change).servers == ("ms1",)


def test_without_servers_there_is_nothing_to_ask_for() -> None:
    assert CloudStackSection().servers == ()


def test_a_store_is_a_directory_or_only_a_name() -> None:
    staging = CLOUDSTACK | {"staging": ["nfs://h/cache"], "staging_file": "/etc/staging.toml"}
    other = Config.model_validate(
        {"cloudstack": staging, "pools": {"nfs_mounts": {"nfs://h/e": "/mnt/e", "h:/x": "/mnt/x"}}}
    )
    assert other.cloudstack.staging == ("nfs://h/cache",)
    with pytest.raises(ValidationError, match="only a name"):
        Config.model_validate({"cloudstack": staging, "pools": {"nfs_mounts": {"nfs://h:2049//cache/": "/mnt/c"}}})
