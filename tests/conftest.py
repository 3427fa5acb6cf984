"""Settings that must stand in the environment before any test module imports Ray."""

from __future__ import annotations

import os

# Ray reads this once, on import: with it every server of a local cluster binds to loopback.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
