"""The HTTP API over real sockets: commands, requests that are refused, and what operators ask."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from agent.commands import Failure, Outcome, State
from agent.dispatcher import Limits
from agent.transports.http_api.problems import status_of
from agent.transports.http_api.routes import ROUTES
from stores.errors import NoSpace
from tests.flows.http_api.place import POOL, agent, delete, outcome

# ----------------------------------------------------------------------------------------------------- commands


async def test_a_command_is_accepted_followed_and_answered(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        async with a.client.post("http://agent/v1/commands", json=delete("c-1")) as response:
            assert response.status == 202
            assert response.headers["Location"] == "/v1/commands/c-1"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Server"] == "storage-agent"
            assert outcome(await response.json()) == ("accepted", False)
        run = await a.started("c-1")
        run.progress.phase("removing", 100)
        run.progress.advance(40)
        status, answer = await a.json("GET", "/v1/commands/c-1")
        assert (status, answer["state"]) == (200, "running")
        assert (answer["progress"]["phase"], answer["progress"]["bytes"], answer["progress"]["total"]) == (
            "removing",
            40,
            100,
        )
        run.end.set_result(Outcome(durability="stored"))
        await a.dispatcher.wait("c-1", 20)
        status, answer = await a.json("GET", "/v1/commands/c-1")
        assert (status, outcome(answer), answer["durability"]) == (200, ("succeeded", True), "stored")
        again, repeated = await a.json("POST", "/v1/commands", json=delete("c-1"))
        assert (again, repeated) == (202, answer)
        assert a.work.started == ["c-1"]


async def test_waiting_gives_the_outcome_and_its_status(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:

        async def end(command_id: str, result: Outcome | Exception) -> None:
            future = (await a.started(command_id)).end
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        async with asyncio.TaskGroup() as group:
            good = group.create_task(a.json("POST", "/v1/commands?wait=30", json=delete("good")))
            full = group.create_task(a.json("POST", "/v1/commands?wait=30", json=delete("full")))
            group.create_task(end("good", Outcome()))
            group.create_task(end("full", NoSpace("needs 2, has 1", needed=2, available=1)))
        assert good.result()[0] == 200
        assert outcome(good.result()[1]) == ("succeeded", True)
        status, answer = full.result()
        assert (status, outcome(answer)) == (507, ("failed", False))
        assert answer["error"] == {
            "kind": "NoSpace",
            "retryable": "operator",
            "message": "needs 2, has 1",
            "details": {"needed": 2, "available": 1},
        }
        again = await a.json("POST", "/v1/commands?wait=30", json=delete("full"))
        assert again == (507, answer)
        status, answer = await a.json("POST", "/v1/commands?wait=0.01", json=delete("slow"))
        assert (status, answer["state"]) in ((202, "running"), (202, "accepted"))
        await end("slow", Outcome())


async def test_a_client_that_goes_away_while_it_waits_leaves_the_command_alone(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        waiting = asyncio.create_task(a.json("POST", "/v1/commands?wait=30", json=delete("c-1")))
        run = await a.started("c-1")
        waiting.cancel()
        await asyncio.wait([waiting])
        run.end.set_result(Outcome())
        assert (await a.dispatcher.wait("c-1", 20)).state is State.SUCCEEDED


async def test_cancelling_answers_when_nothing_is_left(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        await a.started("c-1")
        status, answer = await a.json("DELETE", "/v1/commands/c-1")
        assert (status, answer["state"], answer["error"]["kind"]) == (200, "cancelled", "Cancelled")
        assert a.work.undone == ["c-1"]
        assert await a.json("DELETE", "/v1/commands/c-1") == (200, answer)


async def test_listing(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        for name in ("a", "b", "c"):
            await a.json("POST", "/v1/commands", json=delete(name))
            await a.started(name)
        a.work.runs["a"].end.set_result(Outcome())
        await a.dispatcher.wait("a", 20)

        async def ids(query: str) -> list[str]:
            status, answer = await a.json("GET", f"/v1/commands{query}")
            assert status == 200
            return [command["id"] for command in answer["commands"]]

        assert await ids("") == ["c", "b", "a"]
        assert await ids("?limit=1") == ["c"]
        assert await ids("?state=succeeded") == ["a"]
        assert await ids("?state=failed") == []


async def test_explaining_runs_nothing(tmp_path: Path) -> None:
    volume = {"type": "volume", "path": "v", "dataStore": POOL}
    async with agent(tmp_path) as a:
        body = {"command": "Copy", "source": volume, "destination": volume}
        status, answer = await a.json("POST", "/v1/explain", json=body)
        assert (status, answer["how"], answer["source"]["chosen"]) == (200, "in place", "RangeReader")
        status, answer = await a.json("POST", "/v1/explain", json=delete())
        assert (status, answer["error"]["kind"]) == (422, "InvalidCommand")
        assert a.work.started == []


# ----------------------------------------------------------------------------------------------- refused requests


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (("POST", "/v1/commands", b"{", {}), 422, "InvalidCommand"),
        (("POST", "/v1/commands", b"[" * 5000, {}), 422, "InvalidCommand"),
        (("POST", "/v1/commands", b'{"command": "Reboot"}', {}), 422, "InvalidCommand"),
        (("POST", "/v1/commands", b"\xff\xfe", {}), 422, "InvalidCommand"),
        (("POST", "/v1/commands", b"{}", {"Content-Type": "text/plain"}), 415, "UnsupportedMediaType"),
        (("POST", "/v1/commands", b"{}", {"Content-Encoding": "gzip"}), 415, "UnsupportedMediaType"),
        (("POST", "/v1/commands?wait=soon", b"{}", {}), 400, "BadRequest"),
        (("POST", "/v1/commands?wait=nan", b"{}", {}), 400, "BadRequest"),
        (("POST", "/v1/commands?wait=-1", b"{}", {}), 400, "BadRequest"),
        (("POST", "/v1/commands", b" " * 70_000, {}), 413, "BodyTooLarge"),
        (("GET", "/v1/commands?limit=0", None, {}), 400, "BadRequest"),
        (("GET", "/v1/commands?limit=1001", None, {}), 400, "BadRequest"),
        (("GET", "/v1/commands?state=odd", None, {}), 400, "BadRequest"),
        (("GET", "/v1/commands/none", None, {}), 404, "UnknownCommand"),
        (("DELETE", "/v1/commands/none", None, {}), 404, "UnknownCommand"),
        (("GET", "/v2/commands", None, {}), 404, "NoSuchRoute"),
        (("PUT", "/v1/commands", b"{}", {}), 405, "MethodNotAllowed"),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong_with_it(
    tmp_path: Path, request_: tuple[str, str, bytes | None, dict[str, str]], status: int, kind: str
) -> None:
    method, path, body, headers = request_
    async with agent(tmp_path, max_body=65536) as a:
        seen, answer = await a.json(method, path, data=body, headers={"Content-Type": "application/json", **headers})
        assert (seen, answer["error"]["kind"], answer["error"]["retryable"]) == (status, kind, "no")
        assert set(answer["error"]) == {"kind", "retryable", "message", "details"}
        assert await a.dispatcher.list() == []


async def test_validation_names_the_place_and_repeats_no_value(tmp_path: Path) -> None:
    command = delete("c-1")
    command["data"]["size"] = "planted-value"
    command["data"]["dataStore"] = {"storeType": "s3", "bucketName": "b", "secretKey": 7}
    async with agent(tmp_path) as a:
        status, answer = await a.json("POST", "/v1/commands", json=command)
        assert (status, answer["error"]["kind"]) == (422, "InvalidCommand")
        places = {problem["at"] for problem in answer["error"]["details"]["problems"]}
        assert any(place.endswith("size") for place in places)
        assert any("secretKey" in place for place in places)
        assert "planted-value" not in json.dumps(answer)


async def test_the_same_id_with_other_content_is_a_conflict(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        status, answer = await a.json("POST", "/v1/commands", json=delete("c-1", path="other"))
        assert (status, answer["error"]["kind"]) == (409, "IdReused")


async def test_a_full_queue_can_be_tried_again(tmp_path: Path) -> None:
    async with agent(tmp_path, limits=Limits(queue=1)) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        status, answer = await a.json("POST", "/v1/commands", json=delete("c-2"))
        assert (status, answer["error"]["kind"], answer["error"]["retryable"]) == (503, "Overloaded", "yes")


async def test_every_kind_of_failure_has_a_status() -> None:
    assert status_of(Failure(kind="NoSpace", retryable="operator", message="")) == 507
    assert status_of(Failure(kind="ImageRefused", retryable="no", message="")) == 422
    assert status_of(Failure(kind="OfALaterVersion", retryable="no", message="")) == 500


# ---------------------------------------------------------------------------------------------------- operations


async def test_health_readiness_and_status(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        async with a.client.get("http://agent/healthz") as alive, a.client.get("http://agent/readyz") as ready:
            assert (alive.status, ready.status, await ready.text()) == (200, 200, "ok\n")
        status, answer = await a.json("GET", "/v1/status")
        assert status == 200
        assert (answer["ready"], answer["running"], answer["waiting"], answer["hypervisor"]) == (True, 0, 0, "KVM")
        await a.dispatcher.shut_down(0)
        async with a.client.get("http://agent/healthz") as alive:
            assert alive.status == 200
        status, answer = await a.json("GET", "/readyz")
        assert (status, answer["error"]["kind"], answer["error"]["details"]["accepting"]) == (503, "Stopping", False)


async def test_metrics_know_routes_and_no_paths(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        await a.json("POST", "/v1/commands", json=delete("planted-id"))
        await a.json("GET", "/v1/commands/planted-id")
        await a.json("GET", "/planted-path")
        async with a.client.get("http://agent/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            text = await response.text()
        assert 'storage_agent_http_requests_total{method="GET",route="/v1/commands/{id}",status="200"} 1.0' in text
        assert "planted" not in text


async def test_the_description_is_valid_and_describes_what_is_served(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        status, document = await a.json("GET", "/openapi.json")
        assert status == 200
        validate(document)
        described = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
        assert described == {(route.method, route.path) for route in ROUTES}
        for method, path in described - {("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/readyz")}:
            _, answer = await a.json(method, re.sub(r"{\w+}", "none", path))
            assert answer.get("error", {}).get("kind") not in ("NoSuchRoute", "MethodNotAllowed"), path
        schemas = document["components"]["schemas"]
        assert {"Copy", "Delete", "TemplateObjectTO", "S3TO", "Answer", "Failure"} <= schemas.keys()
        assert schemas["S3TO"]["properties"]["secretKey"]["anyOf"][0]["format"] == "password"
        assert document["paths"]["/v1/commands/{id}"]["get"]["parameters"][0]["name"] == "id"
