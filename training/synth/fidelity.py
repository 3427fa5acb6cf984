"""How faithful a synthetic cohort is to users that its generator has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from qiance.evaluate.prediction import auc

FOLDS = 5


def fidelity(
    learned: pd.DataFrame, held_out: pd.DataFrame, synthetic: pd.DataFrame, target: str | None, seed: int = 0
) -> dict[str, Any]:
    """Figures of `synthetic` against `held_out`, beside those of `learned`, which are as good as can be.

    columns: by column the Kolmogorov-Smirnov distance of numbers, the total variation of categories.
    correlation: differences of Spearman's between all pairs of columns. two_sample: AUC of a classifier that
    tells real from synthetic, 0.5 for one that cannot (Lopez-Paz & Oquab, ICLR 2017). utility: AUC on
    held-out users of a model of `target` (the last column), trained on synthetic users and on real ones.
    """
    chosen = target or str(learned.columns[-1])
    if chosen not in learned:
        raise ValueError(
            f"target: {chosen!r} is no column; use one of {', '.join(map(str, learned.columns))}"
        )
    rng = np.random.default_rng(seed)
    some = synthetic.iloc[rng.permutation(len(synthetic))[: max(len(learned), 50)]]
    sides = {"synthetic": some, "real": learned}
    columns = {
        str(name): {side: distance(held_out[name], own[name]) for side, own in sides.items()}
        for name in learned
    }
    return {
        "columns": columns,
        "mean_distance": {side: float(np.mean([own[side] for own in columns.values()])) for side in sides},
        "correlation": {side: correlation(held_out, own) for side, own in sides.items()},
        "two_sample": {side: two_sample(held_out, own, seed) for side, own in sides.items()},
        "utility": {
            "target": chosen,
            **{
                f"trained_on_{side}": utility(own, held_out, learned, chosen, seed)
                for side, own in sides.items()
            },
        },
    }


def distance(real: pd.Series, other: pd.Series) -> float:
    """Largest difference of distribution functions, or total variation; missing is a value of its own."""
    if real.dtype == object:
        shares = [side.fillna("(missing)").value_counts(normalize=True) for side in (real, other)]
        return float(0.5 * shares[0].sub(shares[1], fill_value=0.0).abs().sum())
    low = min(real.min(), other.min()) - 1.0
    return float(stats.ks_2samp(real.fillna(low), other.fillna(low)).statistic)


def correlation(real: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Mean and largest absolute difference of rank correlations between pairs of columns."""
    if real.shape[1] < 2:
        return {"mean": 0.0, "largest": 0.0}
    parts = [_ranked(frame).corr(method="spearman").fillna(0.0).to_numpy() for frame in (real, other)]
    away = np.abs(parts[0] - parts[1])[np.triu_indices(real.shape[1], 1)]
    return {"mean": float(away.mean()), "largest": float(away.max())}


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({
        name: frame[name].fillna("").astype("category").cat.codes if frame[name].dtype == object else
        frame[name] for name in frame
    })  # fmt: skip


def two_sample(real: pd.DataFrame, other: pd.DataFrame, seed: int) -> float:
    """AUC by cross-validation, with as many of one as of the other."""
    size = min(len(real), len(other))
    # Not the seed of the folds: equal seeds shuffle alike, and a fold would be a block of the table.
    rng = np.random.default_rng([seed, 6])
    both = pd.concat(
        [side.iloc[rng.permutation(len(side))[:size]] for side in (real, other)], ignore_index=True
    )
    label = np.repeat([0, 1], size)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    chance = cross_val_predict(
        _classifier(seed), _inputs(both, both), label, cv=folds, method="predict_proba"
    )
    return auc(label, chance[:, 1])


def utility(
    train: pd.DataFrame, test: pd.DataFrame, real: pd.DataFrame, target: str, seed: int
) -> float | None:
    """AUC on `test`; the label is `target` above the median of `real`, or its most frequent category.

    None where there is but one label, or no other column.
    """
    known = real[target].dropna()
    if real[target].dtype == object:
        label = [frame[target] == known.mode()[0] for frame in (train, test)]
    else:
        label = [frame[target] > known.median() for frame in (train, test)]
    if any(own.nunique() < 2 for own in label) or real.shape[1] < 2:
        return None
    rest = real.drop(columns=target)
    model = _classifier(seed).fit(_inputs(train.drop(columns=target), rest), label[0])
    return auc(label[1].astype(int), model.predict_proba(_inputs(test.drop(columns=target), rest))[:, 1])


def _inputs(frame: pd.DataFrame, reference: pd.DataFrame) -> NDArray[np.float64]:
    """Categories as codes of those in `reference`, NaN for others."""
    parts = []
    for name in reference:
        if reference[name].dtype == object:
            codes = pd.Index(sorted(set(reference[name].dropna()))).get_indexer(frame[name]).astype(float)
            parts.append(np.where(codes < 0, np.nan, codes))
        else:
            parts.append(frame[name].to_numpy(dtype=np.float64))
    return np.stack(parts, axis=1)


def _classifier(seed: int) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=15, random_state=seed)
