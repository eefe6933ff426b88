"""What a request to the data handlers has to say before a byte of its body is taken."""

from __future__ import annotations

from typing import Literal

from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.http import Request
from tests.doubles.xapi.schema import NULL
from tests.doubles.xapi.world import World

Direction = Literal["import", "export"]


class Refused(Exception):
    """An answer instead of a transfer. `failure` is what the client's task is told, if anything."""

    def __init__(self, status: int, text: str, failure: Failure | None = None, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.failure = failure
        self.headers = headers


class Admission:
    """Methods raise `Refused`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._db = world.db

    def authenticated(self, request: Request, *, local: bool) -> str:
        session = request.cookie_first("session_id")
        if session is not None:
            if not self._db.has("session", session):
                raise _unauthorised("the session is not valid")
            return "cookie" if "session_id" in request.cookies else "query"
        if request.basic is not None:
            try:
                self._world.sessions.authenticate(*request.basic)
            except Failure:
                raise _unauthorised("wrong credentials") from None
            return "basic"
        if local:
            return "socket"
        raise _unauthorised("no credentials")

    def target(self, where: Direction, request: Request) -> tuple[str, str]:
        """The VDI (nothing: it has to be made) and its SR. An unknown one is a 500 that no task hears of."""
        told = request.query_first("vdi")
        try:
            if told is not None:
                vdi = told if self._db.has("VDI", told) else self._db.by_uuid("VDI", told)
                return vdi, self._db.field("VDI", vdi, "SR")
            if where == "import" and (sr := request.cookie_first("sr_id")) is not None:
                self._db.get("SR", sr)
                return "", sr
            if where == "import" and (number := request.cookie_first("sr_uuid")) is not None:
                return "", self._db.by_uuid("SR", number)
        except Failure as failure:
            raise Refused(500, str(failure.description)) from failure
        if where == "import":
            raise Refused(400, "which VDI?", Failure("VDI_MISSING", NULL, NULL))
        raise Refused(500, "which VDI?")

    def file_format(self, where: Direction, request: Request) -> tuple[str, bool]:
        told = (request.query_first("format") or "raw").lower()
        chunked = where == "import" and request.query_first("chunked") is not None
        known = ["raw", "vhd", *(["qcow2"] if self._world.settings.qcow2 else [])]
        if told not in known:
            raise Refused(404, "unknown format", Failure("INTERNAL_ERROR", f"Unknown format {told}"))
        if chunked and told != "raw":
            raise Refused(404, "chunked is for raw", Failure("INTERNAL_ERROR", f"Cannot import chunked {told}"))
        encoding = request.headers.get("transfer-encoding")
        if where == "import" and encoding is not None:
            text = f"Cannot handle encoding {encoding}"
            raise Refused(404, text, Failure("INTERNAL_ERROR", text))
        return told, chunked

    def made(self, sr: str, file_format: str, request: Request) -> str:
        length = request.content_length
        if file_format != "raw" or not length:
            text = "only a raw disk of a known length makes its own VDI"
            raise Refused(400, text, Failure("INTERNAL_ERROR", text))
        try:
            return self._world.storage.create(sr, length, name_label="Imported VDI")
        except Failure as failure:
            raise Refused(500, str(failure.description), failure) from failure

    def task(self, where: Direction, host: int, request: Request) -> str:
        told = request.cookie_first("task_id")
        if told is None:
            label = "Importing raw VDI" if where == "import" else "Exporting raw VDI"
            parent = request.cookie_first("subtask_of") or NULL
            return self._world.tasks.create(label, host=self._world.hosts[host], subtask_of=parent)
        if not self._db.has("task", told):
            raise Refused(500, f"there is no task {told}")
        self._db.change("task", told, resident_on=self._world.hosts[host])
        return told


def _unauthorised(text: str) -> Refused:
    return Refused(401, text, www_authenticate='Basic realm="XenServer"')
