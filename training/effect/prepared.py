"""The rows of a training as the network reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray

from qiance.features.encoder import Encoder
from qiance.features.schema import FeatureSchema
from training.effect.labels import network_config, read_labels
from training.effect.network import NetworkConfig
from training.effect.randomness import poisson_weights
from training.effect.sampling import Sampling, choose_sampling
from training.effect.split import Mask, Split

Draws = NDArray[np.float32]
_CHUNK = 8_192


@dataclass(frozen=True)
class Prepared:
    """n rows: num `[n, Dn]`, cat `[n, Dc]`, labels by task `[n]`, the unit of each `[n]`.

    natural: values of the features whose groups intervals must cover, `[n]` each. fitted, choosing: rows that
    train and rows that choose the epoch, those without a response perhaps sampled.
    """

    encoder: Encoder
    config: NetworkConfig
    num: NDArray[np.float32]
    cat: NDArray[np.int64]
    labels: dict[str, NDArray[np.float64]]
    natural: list[NDArray[np.str_]]
    units: NDArray[Any]
    fitted: Mask
    choosing: Mask
    sampling: Sampling | None

    def arrays(self, heads: int, seed: int) -> dict[str, NDArray[Any]]:
        """What the workers read, see `training.effect.loop.Rows`."""
        weights, found = poisson_weights(self.units, heads, seed), dict[str, NDArray[Any]]()
        labels = self.labels if self.sampling is None else self.sampling.hide(self.labels)
        for part, mask in (("train", self.fitted), ("valid", self.choosing)):
            found |= {f"{part}_num": self.num[mask], f"{part}_cat": self.cat[mask]}
            found[f"{part}_weights"] = weights[mask]
            for task, values in labels.items():
                found[f"{part}_{task}"] = values[mask].astype(np.float32)
        return found

    def of(self, mask: Mask) -> dict[str, NDArray[np.float64]]:
        """Labels of some rows."""
        return {task: values[mask] for task, values in self.labels.items()}

    @torch.inference_mode()
    def draws(self, served: torch.nn.Module, mask: Mask) -> dict[str, Draws]:
        """Task → `[n, H]` for some rows."""
        num, cat = torch.from_numpy(self.num[mask]), torch.from_numpy(self.cat[mask])
        parts = [served(*chunk) for chunk in zip(num.split(_CHUNK), cat.split(_CHUNK), strict=True)]
        output = torch.cat(parts).numpy()
        return {task: output[:, :, place] for place, task in enumerate(self.config.tasks)}


def prepare(
    table: pa.Table,
    schema: FeatureSchema,
    labels: Sequence[str],
    split: Split,
    units: ArrayLike | None,
    groups: Sequence[str],
    *,
    heads: int,
    hidden: tuple[int, ...],
    dropout: float,
    embedding: int,
    min_count: int,
    components: int,
    negative_ratio: float | None,
    seed: int,
) -> Prepared:
    """Read, check and encode `table`; see `training.effect.fit.train_effect`."""
    columns = schema.columns(table)
    found = read_labels(table, labels)
    encoder = Encoder.fit(
        schema,
        {name: values[split.train] for name, values in columns.items()},
        min_count=min_count,
        components=components,
    )
    num, cat = encoder.encode(columns)
    sampling = choose_sampling(found, split.train, negative_ratio, seed)
    fitted, choosing = split.train, split.valid
    if sampling is not None:
        fitted, choosing = (sampling.keep(mask, found) for mask in (fitted, choosing))
    sizes: dict[str, Any] = {"heads": heads, "hidden": hidden, "dropout": dropout, "embedding": embedding}
    config = network_config(encoder, found, fitted, **sizes)
    names = dict.fromkeys((*schema.categorical, *groups))
    natural = [np.asarray(table.column(name).to_numpy()).astype(np.str_) for name in names]
    ids = _unit_ids(units, table.num_rows)
    return Prepared(encoder, config, num, cat, found, natural, ids, fitted, choosing, sampling)


def _unit_ids(units: ArrayLike | None, n: int) -> NDArray[Any]:
    ids = np.arange(n) if units is None else np.asarray(units)
    if ids.shape != (n,):
        raise ValueError(f"units: has shape {ids.shape} where the table has {n} rows")
    return ids
