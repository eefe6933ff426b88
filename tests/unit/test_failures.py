"""Every exception becomes an answer, and nothing that it should not say gets into it."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

import pytest
import structlog
from pydantic import ValidationError

from agent import failures
from agent.commands import COMMAND
from agent.failures import Internal, InvalidCommand, http_status, tell
from stores.cache.errors import LeaseLost
from stores.errors import NoSpace, NotFound, Retry, Unavailable
from stores.secret import Secret
from tests.error_classes import error_classes


def test_every_error_is_told_with_its_kind_and_whether_to_retry() -> None:
    for error in error_classes().values():
        told = tell(error("what was needed, what there was", number=7))
        assert told.failure.kind == error.__name__
        assert told.failure.retryable == error.retry.value
        assert told.failure.message == "what was needed, what there was"
        assert told.failure.details["number"] == 7
        assert 400 <= told.http_status < 600
        assert error.__doc__


def test_a_new_error_is_told_as_its_base() -> None:
    class NoSpaceInPool(NoSpace):
        pass

    assert http_status(NoSpaceInPool) == http_status(NoSpace) == 507


def test_statuses_agree_with_whether_to_retry() -> None:
    """503 invites a client to try again; only what a retry can help may say so."""
    for error in error_classes().values():
        if error.retry is Retry.NO:
            assert http_status(error) != 503, error
    assert http_status(Unavailable) == http_status(LeaseLost) == 503
    assert http_status(NotFound) == 404


def test_the_unforeseen_is_logged_and_not_told() -> None:
    with structlog.testing.capture_logs() as logs:
        told = tell(KeyError("secret-in-clear"), incident=lambda: "i-1")
    assert told.failure.kind == "Internal"
    assert told.failure.details == {"incident": "i-1"}
    assert "secret-in-clear" not in told.failure.model_dump_json()
    assert "i-1" in told.failure.message
    (record,) = logs
    assert record["incident"] == "i-1"
    assert isinstance(record["exc_info"], KeyError)
    assert told.http_status == http_status(Internal) == 500


def test_incidents_have_numbers_of_their_own() -> None:
    with structlog.testing.capture_logs():
        one, other = tell(RuntimeError()), tell(RuntimeError())
    assert one.failure.details != other.failure.details


def test_invalid_commands_say_where_without_showing_what() -> None:
    body = {"command": "GetStorageStats", "store": {"storeType": "s3", "secretKey": "secret-in-clear"}}
    with pytest.raises(ValidationError) as caught:
        COMMAND.validate_python(body)
    told = tell(caught.value)
    assert told.failure.kind == InvalidCommand.__name__
    assert told.http_status == 422
    assert "bucketName" in told.failure.message
    text = told.failure.model_dump_json()
    assert "secret-in-clear" not in text


def test_details_become_plain_json() -> None:
    class Colour(StrEnum):
        RED = "red"

    told = tell(
        NotFound(
            "m",
            path=Path("/a"),
            some={Colour.RED, Colour.RED},
            more=(1, [None, 2.5]),
            table={1: Colour.RED},
            cause=OSError("disk"),
            key=Secret("secret-in-clear"),
        )
    )
    assert json.loads(told.failure.model_dump_json())["details"] == {
        "path": "/a",
        "some": ["red"],
        "more": [1, [None, 2.5]],
        "table": {"1": "red"},
        "cause": "disk",
        "key": "***",
    }


def test_every_error_of_the_agent_has_its_own_status() -> None:
    own = [cls for cls in vars(failures).values() if isinstance(cls, type) and issubclass(cls, failures.AgentError)]
    assert len(own) > 10
    for error in own:
        if error not in (failures.AgentError, failures.JournalLocked):
            assert error in failures._HTTP_STATUS, error
