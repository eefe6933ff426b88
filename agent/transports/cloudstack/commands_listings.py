"""What an object store holds, as the server compares it with its database: read off the keys. Pure.

Keys are `template/tmpl/<account>/<template id>/<unique name>/<file>` and `volumes/<account>/<volume id>/<file>`.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.transports.cloudstack.models_images import TemplateProp

TEMPLATES = "template/tmpl"
VOLUMES = "volumes"
_TEMPLATE_DEPTH = len(TEMPLATES.split("/")) + 4
_VOLUME_DEPTH = len(VOLUMES.split("/")) + 3


def templates(objects: Iterable[tuple[str, int]]) -> dict[str, TemplateProp]:
    """By unique name, of keys and their sizes in bytes. What no template's key looks like is not one."""
    found = {}
    for key, size in objects:
        parts = key.split("/")
        if len(parts) == _TEMPLATE_DEPTH:
            name = parts[-2]
            found[name] = TemplateProp(
                templateName=name, installPath=key, size=size, physicalSize=size, id=_number(parts[-3]), isPublic=True
            )
    return found


def volumes(objects: Iterable[tuple[str, int]]) -> dict[str, TemplateProp]:
    """By the volume's id, likewise."""
    found = {}
    for key, size in objects:
        parts = key.split("/")
        if len(parts) == _VOLUME_DEPTH and _number(parts[-2]):
            found[parts[-2]] = TemplateProp(
                templateName=parts[-2],
                installPath=key,
                size=size,
                physicalSize=size,
                id=_number(parts[-2]),
                isPublic=True,
            )
    return found


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
