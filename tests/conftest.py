"""Fixtures for all tests, and what hypothesis may find wrong."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.servers", "tests.postgres", "tests.ledgers", "tests.secret_scan"]

# An example fails for what it does, not for how long it takes on a busy machine.
settings.register_profile("any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")
