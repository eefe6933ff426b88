"""The aiobotocore client of one store: opened on first use, kept, and blind to everything but its `S3Config`.

botocore looks for settings in the environment, in `~/.aws` and at the cloud's metadata service. An agent that acts for
many tenants must not: a command's store is reached with that command's credentials or none. The session below therefore
has every setting pinned to botocore's own default.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import ssl
from contextlib import AsyncExitStack
from typing import Any

from stores.backends.connecting import trusting_context
from stores.backends.s3_config import S3Config
from stores.backends.s3_errors import translated
from stores.settings import StoreSettings
from stores.transfer.engine import TransferEngine


class S3Client:
    """Gives the client of `config`. Belongs to one event loop."""

    def __init__(self, config: S3Config, settings: StoreSettings, engine: TransferEngine) -> None:
        self.config = config
        self._settings = settings
        self._engine = engine
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._client: Any = None
        self._tls: ssl.SSLContext | None = None

    async def call(self, operation: str, ref: str | None, /, **arguments: Any) -> dict[str, Any]:
        """The answer to an S3 operation, by its botocore name, on the bucket. Raises errors of `stores.errors`; `ref` is
        what they name."""
        client = await self.get()
        with translated(self.config.id, operation, ref):
            answer: dict[str, Any] = await getattr(client, operation)(Bucket=self.config.bucket, **arguments)
            return answer

    async def read(self, key: str) -> bytes:
        """A small object at once."""
        answer = await self.call("get_object", key, Key=key)
        with translated(self.config.id, "get_object", key):
            async with answer["Body"] as body:
                return bytes(await body.read())

    async def get(self) -> Any:
        """The open client (`types_aiobotocore_s3.S3Client`). Many callers at once share it."""
        async with self._opening:
            if self._client is None:
                session = await self._engine.run(_session)
                tls = await self._trust()
                arguments = _client_arguments(self.config, tls)
                self._client = await self._stack.enter_async_context(session.create_client("s3", **arguments))
            return self._client

    async def tls(self) -> ssl.SSLContext:
        """The context with which the same servers are trusted on other connections."""
        async with self._opening:
            return await self._trust()

    async def aclose(self) -> None:
        """Closes connections. Idempotent; the next `get` opens anew."""
        async with self._opening:
            self._client = None
            await self._stack.aclose()

    async def _trust(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = await self._engine.run(trusting_context, self._settings.ca_file)
        return self._tls


@functools.cache
def _session() -> Any:
    """One for the process: it holds S3's service description and nothing of any store. Blocking, 0.5 s the first time."""
    import awscrt.checksums  # noqa: F401 - for the uploads, here since importing it takes 0.1 s
    from aiobotocore.session import AioSession
    from botocore.configprovider import (
        BOTOCORE_DEFAUT_SESSION_VARIABLES,
        ConfigValueStore,
        ConstantProvider,
        create_botocore_default_config_mapping,
    )

    # What these log at DEBUG are whole requests, signatures included.
    for name in ("aiobotocore", "botocore"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
    session = AioSession()
    values = {name: default for name, (_, _, default, _) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items()}
    values |= {"config_file": os.devnull, "credentials_file": os.devnull}
    names = create_botocore_default_config_mapping(session)
    store = ConfigValueStore({name: ConstantProvider(values.get(name)) for name in names})
    session.register_component("config_store", store)
    session.warm_up_loader_caches("s3")
    return session


def _client_arguments(config: S3Config, tls: ssl.SSLContext) -> dict[str, Any]:
    from aiobotocore.config import AioConfig
    from aiobotocore.httpsession import AIOHTTPSession
    from botocore import UNSIGNED

    class Trusting(AIOHTTPSession):  # type: ignore[misc]  # the library has no types
        """With our TLS context: the library takes one file of authorities in place of the system's, not beside them."""

        def _build_verify_context(self) -> ssl.SSLContext:
            return tls

    return {
        "region_name": config.region,
        "endpoint_url": config.endpoint,
        "aws_access_key_id": config.access_key,
        "aws_secret_access_key": config.secret_key.reveal() if config.secret_key else None,
        "verify": True,
        "config": AioConfig(
            signature_version="s3v4" if config.secret_key else UNSIGNED,
            s3={"addressing_style": "path" if config.path_style else "virtual"},
            connect_timeout=config.connect_timeout,
            read_timeout=config.read_timeout,
            retries={"mode": "standard", "total_max_attempts": config.attempts},
            proxies={},
            ignore_configured_endpoint_urls=True,
            # Servers older than 2025 refuse or ignore the trailers that "when_supported" sends; uploads carry checksums
            # of their own, which are believed only where the server returns them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            http_session_cls=Trusting,
        ),
    }
