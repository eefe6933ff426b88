"""Image stores into which a test puts files behind the agent's back."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.to import S3TO, DataStoreTO, ImageFormat, ImageStoreTO, TemplateObjectTO
from stores.wrappers.reporting import Direction
from tests.doubles.world import World
from tests.servers import NginxServer, S3Server


@dataclass
class Shelf:
    """`where`: s3, http, norange (http without ranges) or directory."""

    here: World
    seaweed: S3Server
    bucket: str
    nginx: NginxServer

    def put(self, where: str, path: Path, name: str | None = None) -> tuple[DataStoreTO, str]:
        """The file in that store: the store's TO and the object's path there."""
        name = name or f"tmpl/2/{uuid.uuid4().hex[:8]}-{path.name}"
        if where == "s3":
            client: Any = self.seaweed.client()
            client.upload_file(str(path), self.bucket, name)
            client.close()
            return self.s3(), name
        if where == "directory":
            store = self.here.directory()
            _copy(path, self.here.root / "images" / name)
            return store, name
        _copy(path, self.nginx.root / name)
        base = {"http": "", "norange": "norange/"}[where]
        return ImageStoreTO.model_validate({"uri": self.nginx.url(base)}), name

    def s3(self, *, port: int | None = None) -> S3TO:
        """The bucket; `port` of a proxy before the server."""
        return S3TO.model_validate(
            {
                "bucketName": self.bucket,
                "endPoint": f"http://127.0.0.1:{port}" if port else self.seaweed.endpoint,
                "accessKey": self.seaweed.access_key,
                "secretKey": self.seaweed.secret_key,
            }
        )

    def fetched(self) -> int:
        """Bytes read from all stores so far, records of pools included."""
        return self.here.counting.bytes[Direction.READ]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def template(store: DataStoreTO, path: str, image_format: ImageFormat | None, **more: Any) -> TemplateObjectTO:
    return TemplateObjectTO(path=path, imageDataStore=store, format=image_format, **more)
