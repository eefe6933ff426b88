"""A bucket for many tests, emptied between them: each new one costs a real server a quarter of a second and several volumes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.servers import S3Server


@contextmanager
def made_bucket(server: S3Server) -> Iterator[tuple[Any, str]]:
    """A boto3 client and the name of a new bucket, which is removed at the end."""
    client, name = server.client(), "b-" + uuid.uuid4().hex[:12]
    try:
        client.create_bucket(Bucket=name)
        yield client, name
        empty(client, name)
        client.delete_bucket(Bucket=name)
    finally:
        client.close()


def keys(client: Any, bucket: str) -> set[str]:
    """Every key, records included."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {entry["Key"] for page in pages for entry in page.get("Contents", ())}


def uploads(client: Any, bucket: str) -> list[tuple[str, str]]:
    """Key and id of every unfinished multipart upload."""
    found = client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
    return [(upload["Key"], upload["UploadId"]) for upload in found]


def empty(client: Any, bucket: str) -> None:
    for key in keys(client, bucket):
        client.delete_object(Bucket=bucket, Key=key)
    for key, upload in uploads(client, bucket):
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
