"""Settings that must stand in the environment before any test module imports Ray, and those of hypothesis."""

from __future__ import annotations

import os

from hypothesis import settings

# Ray reads this once, on import: with it every server of a local cluster binds to loopback.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# `make test` tries the same examples every time, as long as they take; `make test-all` draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")
