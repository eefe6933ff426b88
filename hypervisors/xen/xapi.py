"""XAPI's calls, one at a time, to one host: JSON-RPC 2.0 on aiohttp. Knows nothing of sessions.

Source: wire-protocol.md of xen-api. 64 bit integers may come as numbers or as text; whoever needs one takes `int` of it.
"""

from __future__ import annotations

import itertools
import json
from types import TracebackType
from typing import Any, Self

import aiohttp

from hypervisors.xen.errors import failure
from hypervisors.xen.hosts import Host, Trust
from stores.errors import StoreError, TlsFailed, Unavailable
from stores.secret import MASK, Secret


class NotConnected(Exception):
    """No connection came about, so that nothing was called: the same may be sent to another host. `error` is what to raise."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(error.message)
        self.error = error


class Xapi:
    """`async with Xapi(trust) as xapi:`. Connections are kept and used again; the context's end closes them."""

    def __init__(self, trust: Trust, *, connect_timeout_s: float = 30.0) -> None:
        self._trust = trust
        self._connect_timeout_s = connect_timeout_s
        self._numbers = itertools.count(1)
        self._http: dict[Host, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for http in self._http.values():
            await http.close()
        self._http.clear()

    async def call(self, host: Host, method: str, params: list[Any], *, timeout_s: float) -> Any:
        """The result. Of `params`, those that are a `Secret` are revealed to XAPI and to nobody else: it likes to repeat them.

        `XapiFailure` and its kin for what XAPI refuses. `NotConnected` when nothing was sent. `Unavailable` when there was no
        answer or no sensible one: the call may have been made, or may not.
        """
        secrets = {param.reveal() for param in params if isinstance(param, Secret)}
        told = [param.reveal() if isinstance(param, Secret) else param for param in params]
        body = {"jsonrpc": "2.0", "method": method, "params": told, "id": next(self._numbers)}
        limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=self._connect_timeout_s)
        try:
            async with self._session(host).post(
                f"{host.url}/jsonrpc", json=body, timeout=limit, allow_redirects=False
            ) as answer:
                text = await answer.read()
        except aiohttp.ServerFingerprintMismatch as error:
            raise NotConnected(_untrusted(host, "its certificate is not the pinned one")) from error
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise NotConnected(_untrusted(host, str(error))) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotConnected(Unavailable(f"host {host} cannot be reached: {error}", host=str(host))) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"host {host} did not answer {method}: {error or 'it took too long'}", host=str(host), method=method
            ) from error
        return _result(host, method, answer.status, text, secrets)

    def _session(self, host: Host) -> aiohttp.ClientSession:
        if host not in self._http:
            connector: aiohttp.BaseConnector
            if host.socket is not None:
                connector = aiohttp.UnixConnector(str(host.socket))
            elif host.fingerprint is not None:
                connector = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(host.fingerprint))
            else:
                connector = aiohttp.TCPConnector(ssl=self._trust.context(host) or True)
            self._http[host] = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._http[host]


def _untrusted(host: Host, why: str) -> TlsFailed:
    return TlsFailed(f"no trusted TLS session with host {host}: {why}", host=str(host))


def _result(host: Host, method: str, status: int, text: bytes, secrets: set[str]) -> Any:
    try:
        told = json.loads(text) if status == 200 else None
    except ValueError:
        told = None
    if not isinstance(told, dict) or not ("result" in told or isinstance(told.get("error"), dict)):
        raise Unavailable(
            f"host {host} answers {method} with HTTP {status} and no result: XAPI may be starting, or is not what is there",
            host=str(host),
            status=status,
        )
    error = told.get("error")
    if error is not None:
        params = [MASK if param in secrets else param for param in error.get("data") or []]
        raise failure(str(error.get("message")), params, doing=method)
    return told["result"]
