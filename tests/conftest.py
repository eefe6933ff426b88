"""Fixtures for all tests."""

from __future__ import annotations

pytest_plugins = ["tests.servers", "tests.postgres", "tests.ledgers", "tests.secret_scan"]
