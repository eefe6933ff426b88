"""An S3 server that throws away what it is sent, so that what is measured is the client.

    python -m benchmarks.sink PORT [TLS_PORT CERTIFICATE KEY]

It knows objects by their size and by the checksum that the client claims, which it repeats as if it had computed it; it looks
at no signature. Bodies of up to 64 KiB are kept, for clients that read their notes back. One thread for each connection; on
plain connections the kernel drops the bytes without copying them (MSG_TRUNC, tcp(7)).
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import mmap
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from stores.contract import KiB, MiB
from tests.servers import Certificates, S3Server, free_ports, http_ok, running, wait_for

KEPT = 64 * KiB
STEP = 1 * MiB
CRC = "x-amz-checksum-crc64nvme"


@dataclass
class Held:
    size: int
    crc: str | None = None
    content: bytes | None = None

    @property
    def headers(self) -> dict[str, str]:
        etag = hashlib.md5(f"{self.size} {self.crc}".encode(), usedforsecurity=False).hexdigest()
        crc = {CRC: self.crc, "x-amz-checksum-type": "FULL_OBJECT"} if self.crc else {}
        return {"ETag": f'"{etag}"', "Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT", **crc}


@dataclass
class Store:
    objects: dict[str, Held] = field(default_factory=dict)
    uploads: dict[str, dict[int, Held]] = field(default_factory=dict)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Held


@dataclass
class Reply:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None


def answer(store: Store, request: Request) -> Reply:
    """What an S3 server would say. Path style only."""
    key, query, body = request.path, request.query, request.body
    if key.count("/") < 2 or key.endswith("/"):  # the bucket, or the server itself
        return Reply(body=b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
    if "uploads" in query:
        upload = f"u{next(store.ids)}"
        store.uploads[upload] = {}
        return Reply(body=f"<R><UploadId>{upload}</UploadId></R>".encode())
    if "uploadId" in query:
        return _multipart(store, request, query["uploadId"])
    if request.method == "PUT":
        if "if-none-match" in request.headers and key in store.objects:
            return Reply(412, body=b"<Error><Code>PreconditionFailed</Code></Error>")
        store.objects[key] = body
        return Reply(headers=body.headers)
    if request.method == "DELETE":
        store.objects.pop(key, None)
        return Reply(204)
    found = store.objects.get(key)
    if found is None:
        return Reply(404, body=b"<Error><Code>NoSuchKey</Code></Error>")
    return Reply(headers=found.headers, body=found.content or b"", length=found.size)


def _multipart(store: Store, request: Request, upload: str) -> Reply:
    parts = store.uploads.get(upload)
    if parts is None:
        return Reply(404, body=b"<Error><Code>NoSuchUpload</Code></Error>")
    if request.method == "PUT":
        parts[int(request.query["partNumber"])] = request.body
        return Reply(headers=request.body.headers)
    if request.method == "POST":
        whole = Held(sum(part.size for part in parts.values()), request.headers.get(CRC))
        store.objects[request.path] = whole
        del store.uploads[upload]
        etag = whole.headers["ETag"].replace('"', "&quot;")
        return Reply(
            body=f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>".encode()
        )
    if request.method == "DELETE":
        del store.uploads[upload]
        return Reply(204)
    listed = "".join(
        f"<Part><PartNumber>{number}</PartNumber><Size>{part.size}</Size><ETag>{part.headers['ETag']}</ETag>"
        f"<ChecksumCRC64NVME>{part.crc}</ChecksumCRC64NVME></Part>"
        for number, part in sorted(parts.items())
    )
    return Reply(body=f"<R><IsTruncated>false</IsTruncated>{listed}</R>".encode())


class Gone(Exception):
    """The client closed its connection."""


class Connection:
    """The requests of one connection, one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        self._buffer = memoryview(mmap.mmap(-1, STEP))
        self._drop = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_TRUNC | socket.MSG_WAITALL

    def serve(self, store: Store) -> None:
        while True:
            first, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if headers.get("expect", "").lower() == "100-continue":
                self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            method, target, _ = first.split(" ")
            url = urlsplit(target)
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            body = self._body(headers)
            request = Request(method, unquote(url.path), query, headers, body)
            self._reply(answer(store, request), head=method == "HEAD")

    def _reply(self, reply: Reply, *, head: bool) -> None:
        length = len(reply.body) if reply.length is None or not head else reply.length
        headers = {"Content-Length": str(length), **reply.headers}
        lines = [f"HTTP/1.1 {reply.status} Said", *(f"{name}: {value}" for name, value in headers.items())]
        self._sock.sendall("\r\n".join([*lines, "", ""]).encode() + (b"" if head else reply.body))

    def _body(self, headers: dict[str, str]) -> Held:
        decoded = headers.get("x-amz-decoded-content-length")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            total = 0
            while size := int(self._until(b"\r\n").partition(b";")[0], 16):
                self._skip(size)
                self._until(b"\r\n")
                total += size
            while self._until(b"\r\n"):
                pass
            return Held(int(decoded or total), headers.get(CRC))
        size = int(headers.get("content-length", 0))
        if size <= KEPT:
            while len(self._rest) < size:
                self._more()
            content, self._rest = self._rest[:size], self._rest[size:]
            return Held(int(decoded or size), headers.get(CRC), content)
        self._skip(size)
        return Held(int(decoded or size), headers.get(CRC))

    def _until(self, end: bytes) -> bytes:
        while end not in self._rest:
            self._more()
        found, _, self._rest = self._rest.partition(end)
        return found

    def _more(self) -> None:
        some = self._sock.recv(KEPT)
        if not some:
            raise Gone
        self._rest += some

    def _skip(self, size: int) -> None:
        known = min(size, len(self._rest))
        self._rest = self._rest[known:]
        size -= known
        while size:
            count = self._sock.recv_into(self._buffer, min(size, STEP), self._drop)
            if not count:
                raise Gone
            size -= count


def listen(port: int, store: Store, tls: ssl.SSLContext | None) -> None:
    """Serves until the process ends."""
    with socket.create_server(("127.0.0.1", port), backlog=128) as server:
        while True:
            sock, _ = server.accept()
            threading.Thread(target=_serve, args=(sock, store, tls), daemon=True).start()


def _serve(sock: socket.socket, store: Store, tls: ssl.SSLContext | None) -> None:
    with suppress(Gone, OSError), sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            Connection(sock).serve(store)
        else:
            with tls.wrap_socket(sock, server_side=True) as encrypted:
                Connection(encrypted).serve(store)


@contextmanager
def run_sink(directory: Path, certificates: Certificates) -> Iterator[S3Server]:
    """A sink in a process of its own, plain and over TLS. Any keys will do."""
    port, tls_port = free_ports(2)
    argv = [sys.executable, "-m", "benchmarks.sink", str(port)]
    argv += [str(tls_port), str(certificates.cert), str(certificates.key)]
    log = directory / "sink.log"
    with running(argv, log) as process:
        wait_for(lambda: http_ok(f"http://127.0.0.1:{port}/"), process, log)
        yield S3Server(
            f"http://127.0.0.1:{port}", f"https://127.0.0.1:{tls_port}", certificates.ca_file, "sink-key", "sink-secret"
        )


def size_of(sink: S3Server, key: str) -> int:
    """Bytes of the object at `/BUCKET/KEY`, 0 where there is none."""
    return _asked(sink, "HEAD", key)


def forget(sink: S3Server, *keys: str) -> None:
    for key in keys:
        _asked(sink, "DELETE", key)


def _asked(sink: S3Server, method: str, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", sink.port)
    try:
        connection.request(method, key)
        answer = connection.getresponse()
        answer.read()
        return int(answer.headers.get("Content-Length", 0))
    finally:
        connection.close()


def main() -> None:
    port, *encrypted = sys.argv[1:]
    store = Store()
    if encrypted:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(encrypted[1], encrypted[2])
        threading.Thread(target=listen, args=(int(encrypted[0]), store, context), daemon=True).start()
    listen(int(port), store, None)


if __name__ == "__main__":
    main()
