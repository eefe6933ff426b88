"""What people see of messages: no secret is in it."""

from __future__ import annotations

import json
import logging

import pytest
from structlog.testing import capture_logs

from agent.commands import Failure
from agent.transports.cloudstack.errors import ContentRefused
from agent.transports.cloudstack.json_codec import Refused, Unknown, decode
from agent.transports.cloudstack.models_session import SetupCertificateCommand
from agent.transports.cloudstack.trace import LogWatcher, masked
from agent.transports.cloudstack.wire import Flag, Message
from stores.secret import Secret
from tests.wire.golden_messages import NAMES, text


@pytest.mark.parametrize("name", NAMES)
def test_every_message_can_be_shown(name: str) -> None:
    items = decode(text(name))
    shown = json.loads(masked(items))
    assert [next(iter(one)) for one in shown] == [item.java for item in items]


def test_secrets_are_masked() -> None:
    store = {"com.cloud.agent.api.to.S3TO": {"accessKey": "visible-a", "secretKey": "visible-b", "bucketName": "b"}}
    template = {"org.apache.cloudstack.storage.to.TemplateObjectTO": {"path": "t", "imageDataStore": store}}
    body = {"srcTO": template, "destTO": template, "options": {"chapTargetSecret": "visible-c"}}
    command = {"org.apache.cloudstack.storage.command.CopyCommand": body}
    answer = SetupCertificateCommand(privateKey=Secret("visible-d"), handleByAgent=True)
    shown = masked([*decode(json.dumps([command]).encode()), answer])
    assert "visible" not in shown
    assert shown.count("***") >= 3


def test_what_is_not_known_is_named() -> None:
    refused = Refused(None, ContentRefused("password=visible is no field"))
    assert json.loads(masked([Unknown("com.example.New"), refused])) == [
        {"com.example.New": "not known"},
        {"?": "password=*** is no field"},
    ]


def test_messages_are_logged_for_those_who_ask(caplog: pytest.LogCaptureFixture) -> None:
    ready: list[bool] = []
    watcher = LogWatcher("Routing", ready.append)
    message = Message(7, Flag.REQUEST, b"")
    for level in (logging.INFO, logging.DEBUG):
        caplog.set_level(level, "agent.transports.cloudstack.trace")
        with capture_logs() as logs:
            watcher.sent(message, [])
            watcher.received(message, [Unknown("com.example.New")])
        assert [log["event"] for log in logs] == ([] if level > logging.DEBUG else ["link sent", "link received"])


def test_ups_and_downs_are_told() -> None:
    ready: list[bool] = []
    watcher = LogWatcher("Routing", ready.append)
    watcher.up()
    watcher.down(Failure(kind="LinkLost", retryable="yes", message="gone"))
    assert ready == [False, True, False]
