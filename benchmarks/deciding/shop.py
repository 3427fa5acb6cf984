"""The shop that every server decides for: built once by the product's own code, kept under .bench/decide."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from qiance.workspace import Workspace

FOLDER = ROOT / ".bench" / "decide"
START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 120
# What a shop is made by: when it changes, the shop is built again.
CODE = ("qiance/artifacts", "qiance/features", "qiance/ledger", "feature_repo", "training/effect")


@dataclass(frozen=True)
class Size:
    """What is built.

    lines: purchase lines per user; rows: training rows of the effect model; stock: Feast's own store too.
    """

    users: int
    items: int
    actions: int
    categories: int = 40
    brands: int = 100
    lines: int = 24
    rows: int = 20_000
    stock: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.actions > self.items:
            raise ValueError(f"size.actions: {self.actions} actions need as many items, not {self.items}")


@dataclass(frozen=True)
class Shop:
    """A workspace that `serve.app:build` can serve, and a stock Feast store with the same features."""

    root: Path
    size: Size

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root)

    @property
    def stock(self) -> Path:
        """Feast repository with Feast's own SQLite online store."""
        return self.root / "stock"

    def facts(self) -> dict[str, Any]:
        """Model version and how many features it reads, for the protocol."""
        return dict(json.loads((self.root / "facts.json").read_text()))

    def users(self) -> list[str]:
        return user_ids(self.size)

    def app_args(self, folder: Path) -> dict[str, Any]:
        """Arguments of `serve.app:build` for a server on a workspace of its own, made in `folder`.

        It has its own copy of the ledger and writes where it likes; features and models are the shop's.
        """
        for name in ("features", "snapshot", "artifacts", "secrets"):
            (folder / name).symlink_to(self.root / name)
        shutil.copy(self.root / "ledger.db", folder / "ledger.db")
        return {
            "workspace": str(folder),
            # An hour after the features were built, whenever the benchmark runs.
            "clock_offset_s": (_now() - datetime.now(UTC)).total_seconds(),
            "llm": {"enabled": False},
            "seed": self.size.seed,
        }


def _now() -> datetime:
    return START + timedelta(days=DAYS, hours=1)


def user_ids(size: Size) -> list[str]:
    return [f"user-{n:07d}" for n in range(size.users)]


def open_shop(size: Size, folder: Path = FOLDER) -> Shop:
    """The shop of this size; built now if it is not there, or was built by other code."""
    place = folder / _key(size)
    if not (place / "facts.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _forget(size, folder)
        staging = Path(tempfile.mkdtemp(prefix=".shop-", dir=folder))
        try:
            # Imported here: training takes seconds to load, and a shop that is there needs none of it.
            from benchmarks.deciding.shop_build import build

            build(Shop(staging, size))
            staging.rename(place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Shop(place, size)


def _key(size: Size) -> str:
    """Names the size and the code that its content depends on."""
    texts = [json.dumps(asdict(size), sort_keys=True), Path(__file__).with_name("shop_build.py").read_text()]
    for room in CODE:
        texts += [path.read_text(encoding="utf-8") for path in sorted((ROOT / room).rglob("*.py"))]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _forget(size: Size, folder: Path) -> None:
    """Remove shops of this size that older code built."""
    for facts in folder.glob("*/facts.json"):
        if json.loads(facts.read_text())["size"] == asdict(size):
            shutil.rmtree(facts.parent, ignore_errors=True)
