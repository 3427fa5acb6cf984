"""Settings that a library takes from the environment only, for the time that it is called."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def unless_set(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set the variables of `wanted` that are not set yet, and take them away in the end."""
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
