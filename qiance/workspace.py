"""Where a run keeps its files, and the snapshots that rooms hand to each other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qiance.domain import Catalogue, Item, UserTable
from qiance.features.transforms import (
    ITEM_FEATURES,
    ITEM_POPULARITY_FEATURES,
    USER_CATEGORY_FEATURES,
    USER_FEATURES,
)

Floats = NDArray[np.float64]
_OF_ITEMS = (*ITEM_FEATURES, *ITEM_POPULARITY_FEATURES)


@dataclass(frozen=True)
class Workspace:
    """Folders and files of one run under `root`."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def features(self) -> Path:
        """The staged Feast repository with its tables and stores."""
        return self.root / "features"

    @property
    def snapshot(self) -> Path:
        return self.root / "snapshot"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def key_file(self) -> Path:
        return self.root / "secrets" / "pseudonym.key"

    @property
    def ledger_url(self) -> str:
        """URL of the default ledger: SQLite in the workspace."""
        return f"sqlite:///{self.root.resolve() / 'ledger.db'}"

    @property
    def frames(self) -> Path:
        """Item values that decisions were scored with, by content hash."""
        return self.root / "frames"

    @property
    def held_out(self) -> Path:
        """Rows that models were not trained on, by name of the model: what they are compared on."""
        return self.root / "held_out"

    @property
    def spool(self) -> Path:
        """What was accepted while the ledger was down."""
        return self.root / "spool"

    @property
    def tracking_url(self) -> str:
        return f"sqlite:///{self.root.resolve() / 'mlflow.db'}"

    def artifact(self, kind: str, version: str) -> Path:
        """Folder of the artifact of `kind` whose version is `version`."""
        path = self.artifacts / f"{kind}-{version}"
        if not path.is_dir():
            raise ValueError(f"{kind}: version {version!r} is not in {self.artifacts}")
        return path


@dataclass(frozen=True)
class Snapshot:
    """Catalogue and feature values at one instant, for rooms that do not read Feast.

    item: `[I]` per feature, state and popularity; user_category: `[U, C]` per feature.
    """

    catalogue: Catalogue
    categories: tuple[str, ...]
    users: UserTable
    item: dict[str, Floats]
    user_category: dict[str, Floats]
    as_of: datetime

    def save(self, folder: Path) -> None:
        """Write the snapshot as JSON and Parquet under `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        document = {
            "as_of": self.as_of.isoformat(),
            "categories": self.categories,
            "items": [asdict(item) for item in self.catalogue],
        }
        write_json(folder / "catalogue.json", document)
        users = {"user_id": pa.array(self.users.user_ids, pa.string())}
        columns = {name: pa.array(self.users.columns[name]) for name in USER_FEATURES}
        pq.write_table(pa.table({**users, **columns}), folder / "users.parquet")
        pq.write_table(pa.table({n: self.item[n] for n in _OF_ITEMS}), folder / "items.parquet")
        flat = {n: self.user_category[n].ravel() for n in USER_CATEGORY_FEATURES}
        pq.write_table(pa.table(flat), folder / "user_category.parquet")

    @classmethod
    def load(cls, folder: Path) -> Snapshot:
        """Read what `save` wrote."""
        document = json.loads((folder / "catalogue.json").read_text())
        users = pq.read_table(folder / "users.parquet")
        shape = (users.num_rows, len(document["categories"]))
        flat = pq.read_table(folder / "user_category.parquet")
        return cls(
            catalogue=Catalogue(tuple(Item(**item) for item in document["items"])),
            categories=tuple(document["categories"]),
            users=UserTable(tuple(users["user_id"].to_pylist()), _columns(users, USER_FEATURES)),
            item=_columns(pq.read_table(folder / "items.parquet"), _OF_ITEMS),
            user_category={n: v.reshape(shape) for n, v in _columns(flat, USER_CATEGORY_FEATURES).items()},
            as_of=datetime.fromisoformat(document["as_of"]),
        )


def _columns(table: Any, names: Iterable[str]) -> dict[str, Floats]:
    return {name: np.asarray(table[name].to_numpy(), dtype=np.float64) for name in names}


def write_json(path: Path, document: Any) -> None:
    """Write JSON whole or not at all."""
    staging = path.with_suffix(f".{os.getpid()}.tmp")
    staging.write_text(json.dumps(document, ensure_ascii=False, indent=1, default=str))
    staging.replace(path)
