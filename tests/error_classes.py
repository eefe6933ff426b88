"""All of our errors, whatever else a test has imported."""

from __future__ import annotations

import importlib
import pkgutil

from stores.errors import StorageError

_OF_ANOTHER_PYTHON = ("stores.backends.rbd_worker",)
"""Programs that import what is not for this one, and have no errors of ours."""

OUR_PACKAGES = ("stores", "hypervisors", "agent")


def error_classes() -> dict[str, type[StorageError]]:
    """By name."""
    for name in OUR_PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if module.name not in _OF_ANOTHER_PYTHON:
                importlib.import_module(module.name)
    found: dict[str, type[StorageError]] = {}
    pending: list[type[StorageError]] = [StorageError]
    while pending:
        cls = pending.pop()
        if cls.__module__.split(".")[0] in OUR_PACKAGES:
            found[cls.__name__] = cls
        pending += cls.__subclasses__()
    return found
