"""Environments of peers that conflict with our pins, with what the product's decision path needs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.harness import ROOT, PeerEnvironment, peer_environment

PEERS = {
    "litserve": ("litserve==0.2.19",),
    "bentoml": ("bentoml==1.4.40",),
}
# What the product's decision path imports; the rest comes with these.
PRODUCT = (
    *("alembic", "cryptography", "fastapi", "feast", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml"),
    *("scipy", "sqlalchemy", "torch", "uvicorn"),
)


def environment(peer: str) -> PeerEnvironment:
    """The environment of `peer`, made by uv once."""
    return peer_environment(peer, [*PEERS[peer], *pins(PRODUCT)])


def pins(names: Sequence[str]) -> list[str]:
    """`name==version` as constraints.txt has it; ValueError for a name that it lacks."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    known = {_plain(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}
    missing = [name for name in names if _plain(name) not in known]
    if missing:
        raise ValueError(f"constraints.txt: {missing[0]!r} has no pin there")
    return [f"{name}=={known[_plain(name)]}" for name in names]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
