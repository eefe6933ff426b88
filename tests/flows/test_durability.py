"""Nothing is called stored before it is: whole daemons, a real object store, and what lies between them slow or gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from tests.doubles.backup_site import BackupSite, backup_site, until
from tests.servers import S3Server

MB = 1_000_000


@pytest.fixture
def site(seaweed: S3Server, tmp_path: Path) -> Iterator[BackupSite]:
    with backup_site(seaweed, tmp_path / "cache") as made:
        yield made


def uploading(site: BackupSite, ref: str) -> dict[str, Any]:
    (found,) = (each for each in site.uploads() if each["ref"] == f"snapshots/v/{ref}")
    return found


def ended(site: BackupSite, command_id: str) -> dict[str, Any]:
    until(lambda: "finished_at" in shown(site, command_id))
    return shown(site, command_id)


def shown(site: BackupSite, command_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = site.host.call("GET", f"/v1/commands/{command_id}")[1]
    return answer


def backed_up(*names: str) -> set[str]:
    return {f"snapshots/v/{name}{suffix}" for name in names for suffix in ("", ".manifest.json")}


def nothing_is_left(site: BackupSite) -> bool:
    """No upload, nothing in the cache that may not go, no key that a store would need, and no parts in the bucket."""
    assert site.uploads() == []
    (pool,) = site.host("cache", "stats", "--json").json["pools"]
    held = {name: pool[name] for name in ("reserved", "pinned", "dirty", "quarantined", "fills", "waiting")}
    assert held == dict.fromkeys(held, 0)
    until(lambda: list((site.host.root / "state" / "credentials").iterdir()) == [])
    assert site.unfinished() == []
    return True


def test_staged_is_stored_in_the_end_over_kills_and_outages(site: BackupSite) -> None:
    site.make_volume(mib=48)
    content = site.content()
    snapshot = site.snapshot("s1")
    site.line.rate_up = 8 * MB
    staged = site.do(site.back_up(snapshot, "s1", "staged", id="c-1"))
    assert (staged["durability"], staged["state"]) == ("staged", "succeeded")
    assert uploading(site, "s1")["id"] == staged["upload"]
    assert site.events() == []

    until(lambda: bool(uploading(site, "s1")["sent"]))
    site.host.stop(SIGKILL)  # in the middle of the upload
    site.line.refuse = True
    site.host.start()
    until(lambda: uploading(site, "s1").get("error") is not None)
    told = site.host("uploads", "show", staged["upload"])
    assert "Unavailable" in told.out
    assert staged["upload"] in site.host("uploads", "ls").out
    assert site.host("uploads", "wait", staged["upload"], "--timeout", "0.2").code == 3
    assert shown(site, "c-1") == staged  # it stays what was said

    site.line.refuse, site.line.rate_up = False, None
    assert site.host("uploads", "retry").code == 0
    assert site.host("uploads", "wait", "--timeout", "60").code == 0
    stored = uploading(site, "s1")
    assert stored["sent"] == stored["size"]
    assert stored["resumed"]  # what had been sent before the kill was not sent again
    assert site.objects() == backed_up("s1")  # once, and no parts beside it
    assert site.unfinished() == []

    assert [(event["id"], event["event"], len(event["uploads"])) for event in site.events()] == [("c-1", "stored", 2)]
    site.host.stop(SIGKILL)
    site.host.start()
    assert [(event["id"], event["event"]) for event in site.events()] == [("c-1", "stored")]  # until it is acknowledged
    assert site.host.call("POST", "/v1/events/c-1/ack")[0] == 200
    site.host.stop(SIGKILL)
    site.host.start()
    assert site.events() == []
    assert nothing_is_left(site)
    assert site.restore("s1", "restored") == content


def test_a_deadline_over_a_pending_upload_and_the_same_command_again(site: BackupSite) -> None:
    site.make_volume()
    snapshot = site.snapshot("s1")
    site.line.rate_up = 0.1 * MB
    staged = site.do(site.back_up(snapshot, "s1", "staged"))

    # Another client wants it stored, does not know of the first one, and does not read `durability`.
    code, late = site.submit(site.back_up(snapshot, "s1", id="c-2", deadline_s=0.5))
    assert (code, late["result"], late.get("durability")) == (3, False, None)
    assert (late["error"]["kind"], late["error"]["retryable"]) == ("UploadPending", "yes")
    assert late["error"]["details"]["upload"] == staged["upload"]
    assert site.do(site.back_up(snapshot, "s1", "staged", id="c-3"))["upload"] == staged["upload"]

    site.begin(site.back_up(snapshot, "s1", id="c-4"))
    until(lambda: shown(site, "c-4")["state"] == "running")
    assert site.host.stop() == 0  # the agent goes for an update
    site.host.start()
    answer = shown(site, "c-4")
    assert answer["error"]["kind"] == "UploadPending"

    for again in ("c-2", "c-4", "c-5"):  # under the same id, and under a new one
        site.begin(site.back_up(snapshot, "s1", id=again))
    site.line.rate_up = None
    site.host("uploads", "retry")
    for again in ("c-2", "c-4", "c-5"):
        answer = ended(site, again)
        assert (answer["result"], answer["durability"]) == (True, "stored"), answer
    assert site.objects() == backed_up("s1")
    assert [event["id"] for event in site.events()] == [staged["id"]]  # one staged it, the others waited
    assert site.content() == site.restore("s1", "restored")


def test_cancelling_who_waits_and_giving_an_upload_up(site: BackupSite) -> None:
    site.make_volume()
    snapshot = site.snapshot("s1")
    site.line.rate_up = 0.1 * MB
    staged = site.do(site.back_up(snapshot, "s1", "staged", id="c-1"))
    site.begin(site.back_up(snapshot, "s1", id="c-2"))
    assert site.host("commands", "cancel", "c-2").code == 0
    assert uploading(site, "s1")["state"] == "sending"  # it is not that command's

    site.begin(site.back_up(snapshot, "s1", id="c-3"))
    for upload in site.uploads():
        if upload["state"] != "stored":
            assert site.host("uploads", "cancel", upload["id"]).code == 0
    site.line.rate_up = None
    assert ended(site, "c-3")["error"]["kind"] == "UploadCancelled"
    (event,) = site.events(20)
    assert (event["id"], event["event"]) == ("c-1", "cancelled")
    assert site.host("uploads", "cancel", staged["upload"]).code == 0  # again
    assert site.host("uploads", "wait", staged["upload"]).code == 1
    assert site.host("uploads", "show", "unheard-of").code == 1
    assert "snapshots/v/s1" not in site.objects()
    assert site.unfinished() == []


def test_a_name_is_taken_while_something_is_on_its_way_there(site: BackupSite) -> None:
    site.make_volume()
    site.line.rate_up = 0.1 * MB
    target = {"type": "template", "path": "templates/t", "format": "QCOW2", "imageDataStore": site.store}
    copy = {"command": "Copy", "source": site.host.volume(), "destination": target}
    staged = site.do({**copy, "durability": "staged"})
    code, refused = site.submit(copy)
    assert (code, refused["error"]["kind"]) == (3, "UploadPending")
    assert refused["error"]["details"]["upload"] == staged["upload"]
    site.line.rate_up = None
    site.host("uploads", "retry")
    assert site.host("uploads", "wait", staged["upload"]).code == 0
    assert site.objects() == {"templates/t"}
    assert site.do(copy)["durability"] == "stored"  # the very same is there already
    site.write("write -P 8 0 1M")
    assert site.submit(copy)[1]["error"]["kind"] == "AlreadyExists"


def test_a_drain_says_whether_everything_is_stored(site: BackupSite) -> None:
    site.make_volume()
    first, second = site.snapshot("s1"), site.snapshot("s2")
    assert site.host("drain", "--wait").code == 0
    assert site.host("drain", "--end").code == 0

    site.line.rate_up = 0.1 * MB
    site.do(site.back_up(first, "s1", "staged"))
    draining = site.host("drain", "--json")
    assert (draining.code, draining.json["stored"], draining.json["uploads"] > 0) == (3, False, True)
    code, refused = site.submit(site.back_up(second, "s2"))
    assert (code, refused["error"]["kind"], refused["error"]["retryable"]) == (3, "Draining", "yes")
    status, refused = site.host.call("GET", "/readyz")
    assert (status, refused["error"]["kind"]) == (503, "Draining")
    assert "not ready: draining" in site.host("status").out
    late = site.host("drain", "--wait", "--timeout", "0.2")
    assert late.code == 3
    assert "not stored" in late.out
    site.line.rate_up = None
    site.host("uploads", "retry")
    done = site.host("drain", "--wait")
    assert (done.code, "everything is stored" in done.out) == (0, True)
    assert site.objects() == backed_up("s1")
    assert site.host("drain", "--end").code == 0

    # Somebody else takes the name meanwhile: that does not go away by itself.
    site.line.rate_up = 0.1 * MB
    staged = site.do(site.back_up(second, "s2", "staged"))
    site.client.put_object(Bucket=site.bucket, Key="snapshots/v/s2", Body=b"somebody else's")
    site.line.rate_up = None
    site.host("uploads", "retry")
    blocked = site.host("drain", "--wait", "--json")
    assert (blocked.code, blocked.json["blocked"], blocked.json["uploads"]) == (4, 2, 2)  # the manifest goes after it
    assert site.host("uploads", "wait", staged["upload"]).code == 4
    assert site.host("uploads", "cancel", staged["upload"]).code == 0
    assert site.host("drain", "--wait").code == 0
    body = site.client.get_object(Bucket=site.bucket, Key="snapshots/v/s2")["Body"].read()
    assert body == b"somebody else's"
    assert site.objects() == {*backed_up("s1"), "snapshots/v/s2"}


def test_backups_are_shown_and_checked(site: BackupSite) -> None:
    site.make_volume()
    site.do(site.back_up(site.snapshot("s1"), "s1"))
    site.write("write -P 9 3M 1M")
    incremental = site.back_up(site.snapshot("s2"), "s2")
    incremental["destination"]["parentSnapshotPath"] = "snapshots/v/s1"
    site.do(incremental)

    file = site.host.write(site.backup("s2"), "backup.json")
    verified = site.host("backups", "verify", file, "--json")
    assert (verified.code, verified.json["verified"]["sound"]) == (0, True)
    assert [each["ref"] for each in verified.json["verified"]["chain"]] == ["snapshots/v/s2", "snapshots/v/s1"]
    store = site.host.write(site.store, "store.json")
    (root,) = site.host("backups", "tree", store, "--json").json["backups"]["roots"]
    assert (root["ref"], [child["ref"] for child in root["children"]]) == ("snapshots/v/s1", ["snapshots/v/s2"])
    assert "  snapshots/v/s2  v, s2" in site.host("backups", "tree", store, "--path", "snapshots/v").out

    body = bytearray(site.client.get_object(Bucket=site.bucket, Key="snapshots/v/s1")["Body"].read())
    body[len(body) // 2] ^= 1
    site.client.put_object(Bucket=site.bucket, Key="snapshots/v/s1", Body=bytes(body))
    damaged = site.host("backups", "verify", store, "--path", "snapshots/v/s2")
    assert (damaged.code, "NOT sound" in damaged.out) == (1, True)
    assert site.host("backups", "verify", store).code == 2
    assert site.host("backups", "tree", "-", stdin="[]").code == 2
    assert site.host("backups", "tree", "-", stdin="{").code == 2
    assert site.host("backups", "tree", store, "--path", "nothing/here", "--json").json["backups"]["roots"] == []
