"""SOAP as WinRM speaks it: requests taken apart, answers and faults put together. Source: [MS-WSMV], [MS-WSMAN]."""

from __future__ import annotations

import base64
import re
import uuid
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import escape

NAMES = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "w": "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd",
    "rsp": "http://schemas.microsoft.com/wbem/wsman/1/windows/shell",
    "x": "http://schemas.xmlsoap.org/ws/2004/09/transfer",
    "f": "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault",
    "pwsh": "http://schemas.microsoft.com/powershell",
}
_SHELL = NAMES["rsp"]
_DONE = f"{_SHELL}/CommandState/Done"

TIMED_OUT = 2150858793
NO_SUCH_SHELL = 2150858843
NO_SUCH_COMMAND = 2150858843
TOO_LARGE = 2150858824
MAX_SHELLS = 2150859173


class WsmanFault(Exception):
    """An answer of 500."""

    def __init__(self, code: int, text: str, subcode: str = "w:InternalError") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.subcode = subcode


@dataclass(frozen=True)
class Message:
    """`action`: the last part of the address, such as Create. `shell`, `command`: upper-case ids."""

    action: str
    full_action: str
    id: str
    resource: str
    timeout_s: float
    shell: str | None
    command: str | None
    data: bytes
    signal: str | None


def parsed(body: bytes) -> Message:
    """ValueError for what is no request of a shell."""
    root = ElementTree.fromstring(body)

    def text(path: str) -> str | None:
        found = root.find(path, NAMES)
        return found.text if found is not None else None

    action = text("s:Header/a:Action") or ""
    told = re.fullmatch(r"PT([0-9.]+)S", text("s:Header/w:OperationTimeout") or "PT60S")
    content = root.find("s:Body", NAMES)
    if content is None or told is None:
        raise ValueError("no body, or no operation timeout")
    shell = next((one.text for one in root.iterfind("s:Header/w:SelectorSet/w:Selector", NAMES)), None)
    command, data, signal = None, b"", None
    for one in content.iter():
        tag = one.tag.partition("}")[2]
        command = one.get("CommandId") or command
        if tag == "Shell":
            shell = one.get("ShellId")
        elif tag in ("creationXml", "Arguments", "Stream"):
            data += base64.b64decode(one.text or "")
        elif tag == "Code":
            signal = one.text
    return Message(
        action.rpartition("/")[2],
        action,
        text("s:Header/a:MessageID") or "",
        text("s:Header/w:ResourceURI") or "",
        float(told[1]),
        shell.upper() if shell else None,
        command.upper() if command else None,
        data,
        signal,
    )


def _envelope(action: str, relates_to: str, body: str) -> bytes:
    spaces = " ".join(f'xmlns:{prefix}="{name}"' for prefix, name in NAMES.items())
    return (
        f'<s:Envelope xml:lang="en-US" {spaces}><s:Header><a:Action>{action}</a:Action>'
        f"<a:MessageID>uuid:{str(uuid.uuid4()).upper()}</a:MessageID>"
        f"<a:To>{NAMES['a']}/role/anonymous</a:To><a:RelatesTo>{escape(relates_to)}</a:RelatesTo></s:Header>"
        f"<s:Body>{body}</s:Body></s:Envelope>"
    ).encode()


def created(message: Message) -> bytes:
    selector = f'<w:SelectorSet><w:Selector Name="ShellId">{message.shell}</w:Selector></w:SelectorSet>'
    body = (
        f"<x:ResourceCreated><a:Address>https://localhost/wsman</a:Address><a:ReferenceParameters>"
        f"<w:ResourceURI>{escape(message.resource)}</w:ResourceURI>{selector}</a:ReferenceParameters></x:ResourceCreated>"
        f"<rsp:Shell><rsp:ShellId>{message.shell}</rsp:ShellId>"
        f"<rsp:ResourceUri>{escape(message.resource)}</rsp:ResourceUri><rsp:State>Connected</rsp:State></rsp:Shell>"
    )
    return _envelope(f"{message.full_action}Response", message.id, body)


def received(message: Message, parts: list[bytes], *, done: bool) -> bytes:
    mark = f' CommandId="{message.command}"' if message.command else ""
    body = "".join(f'<rsp:Stream Name="stdout"{mark}>{base64.b64encode(part).decode()}</rsp:Stream>' for part in parts)
    if done:
        body += f'<rsp:CommandState{mark} State="{_DONE}"></rsp:CommandState>'
    return _envelope(f"{message.full_action}Response", message.id, f"<rsp:ReceiveResponse>{body}</rsp:ReceiveResponse>")


def commanded(message: Message) -> bytes:
    body = f"<rsp:CommandResponse><rsp:CommandId>{message.command}</rsp:CommandId></rsp:CommandResponse>"
    return _envelope(f"{message.full_action}Response", message.id, body)


def plain(message: Message) -> bytes:
    """The answer to Send, Signal and Delete."""
    body = "" if message.action == "Delete" else f"<rsp:{message.action}Response/>"
    return _envelope(f"{message.full_action}Response", message.id, body)


def fault(message_id: str, problem: WsmanFault) -> bytes:
    body = (
        f"<s:Fault><s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>{problem.subcode}</s:Value></s:Subcode></s:Code>"
        f'<s:Reason><s:Text xml:lang="en-US">{escape(problem.text)}</s:Text></s:Reason><s:Detail>'
        f'<f:WSManFault Code="{problem.code}" Machine="hyperv"><f:Message>{escape(problem.text)}</f:Message></f:WSManFault>'
        f"</s:Detail></s:Fault>"
    )
    return _envelope("http://schemas.dmtf.org/wbem/wsman/1/wsman/fault", message_id, body)
