"""Why a prediction is what it is: SHAP and LIME by Captum, in features and values that a marketer knows.

Both ask the model about rows in which some features are those of the explained row and the others those of a
background row, so that any model can be explained, and a missing feature is a usual one, not a zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qiance.features.schema import Columns, FeatureSchema

if TYPE_CHECKING:
    import torch

Method = Literal["shap", "lime"]
Predict = Callable[[Columns], NDArray[np.float64]]
# Cost of an explanation of F features: rows that the model is asked for are at most
# ORDERS · F · BACKGROUND for SHAP and SAMPLES · LIME_BACKGROUND for LIME, whatever the model is.
ORDERS, BACKGROUND = 16, 32
SAMPLES, LIME_BACKGROUND = 1_500, 8
_RIDGE = 1e-3  # only so that features which never vary do not make the local model singular


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one feature adds to the prediction, in the prediction's own units."""

    feature: str
    value: Any
    effect: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one prediction is what it is.

    prediction: of the row. baseline: SHAP's is the mean prediction of the background, LIME's what its local
    linear model gives with every feature taken from there. contributions: largest first. additivity_error:
    prediction − baseline − Σ effects; 0 up to rounding for SHAP, the local model's lack of fit for LIME.
    """

    method: Method
    prediction: float
    baseline: float
    contributions: tuple[Contribution, ...]
    additivity_error: float


def background_columns(
    background: Mapping[str, Sequence[Any]], schema: FeatureSchema
) -> dict[str, NDArray[Any]]:
    """Background rows as an artifact stores them, feature → values, as columns of `schema`."""
    return {
        name: np.array(values, dtype=np.float64 if name in schema.numeric else object)
        for name, values in background.items()
    }


class _Mixer:
    """Predictions of rows mixed from the explained row (where a mask is 1) and background rows."""

    def __init__(self, predict: Predict, row: Columns, background: Columns, names: Sequence[str]) -> None:
        self._predict, self.names = predict, tuple(names)
        self._row = {name: np.asarray(row[name])[:1] for name in self.names}
        self._background = {name: np.asarray(background[name]) for name in self.names}
        self.size = len(self._background[self.names[0]])

    def __call__(self, mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """mask `[M, F]`, places `[M]` of background rows → `[M]`."""
        import torch

        own, where = mask.numpy() > 0.5, places.numpy()
        columns = {}
        for number, name in enumerate(self.names):
            given = self._background[name][where]
            given[own[:, number]] = self._row[name][0]
            columns[name] = given
        return torch.from_numpy(np.asarray(self._predict(columns), dtype=np.float64))


def explain(
    predict: Predict,
    row: Columns,
    background: Columns,
    names: Sequence[str],
    method: Method = "shap",
    seed: int = 0,
) -> Explanation:
    """Explain the prediction of one row.

    predict: feature columns of M rows → `[M]`. row: columns with one row; background: columns with B rows, of
    which at most 32 are used; a feature may be a vector, which counts as one. names: the F features to
    explain. The same seed gives the same explanation. Raises ValueError without features or background.
    """
    import torch

    if not names or not len(background[names[0]]):
        raise ValueError("names, background: at least one feature and one row are needed")
    mixer = _Mixer(predict, row, _first(background, names, BACKGROUND), names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        effects, baseline = (_shap if method == "shap" else _lime)(mixer)
    prediction = float(np.asarray(predict({name: np.asarray(row[name])[:1] for name in names}))[0])
    found = [
        Contribution(name, plain_value(row[name][0]), float(effect))
        for name, effect in zip(names, effects, strict=True)
    ]
    found.sort(key=lambda one: -abs(one.effect))
    error = prediction - baseline - float(np.sum(effects))
    return Explanation(method, prediction, baseline, tuple(found), error)


def _shap(mixer: _Mixer) -> tuple[NDArray[np.float64], float]:
    """Shapley values by sampled orders (Castro, Gómez and Tejada, 2009), against each background row.

    Along every order the steps add up to the whole way from the background row to the explained one, so their
    sum is exact however few orders are drawn.
    """
    import torch
    from captum.attr import ShapleyValueSampling

    features = len(mixer.names)
    full = torch.ones(mixer.size, features, dtype=torch.float64)
    places = torch.arange(mixer.size)
    effects = ShapleyValueSampling(mixer).attribute(
        full,
        baselines=torch.zeros_like(full),
        additional_forward_args=(places,),
        n_samples=ORDERS,
        perturbations_per_eval=features,
    )
    baseline = float(mixer(torch.zeros_like(full), places).mean())
    return effects.double().mean(dim=0).numpy(), baseline


def _lime(mixer: _Mixer) -> tuple[NDArray[np.float64], float]:
    """A weighted linear model around the row (Ribeiro, Singh and Guestrin, 2016)."""
    import torch
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime
    from captum.attr._core.lime import get_exp_kernel_similarity_function

    features = len(mixer.names)

    def forward(mask: torch.Tensor) -> torch.Tensor:
        places = torch.randint(mixer.size, (len(mask) * LIME_BACKGROUND,))
        rows = mask.repeat_interleave(LIME_BACKGROUND, dim=0)
        return mixer(rows, places).view(len(mask), LIME_BACKGROUND).mean(dim=1)

    local = SkLearnRidge(alpha=_RIDGE)
    kernel = get_exp_kernel_similarity_function("euclidean", kernel_width=0.75 * math.sqrt(features))
    effects = Lime(forward, local, kernel).attribute(
        torch.ones(1, features), baselines=torch.zeros(1, features), n_samples=SAMPLES,
        perturbations_per_eval=SAMPLES,
    )  # fmt: skip
    bias = local.bias()
    return effects.double().numpy()[0], float(bias) if bias is not None else 0.0


def _first(columns: Columns, names: Sequence[str], most: int) -> Mapping[str, NDArray[Any]]:
    return {name: np.asarray(columns[name])[:most] for name in names}


def plain_value(value: Any) -> Any:
    """A value that JSON can hold, or a list of them; what is not known is None."""
    if isinstance(value, np.ndarray):
        return [plain_value(one) for one in value]
    if value is None or value != value:
        return None
    return value.item() if isinstance(value, np.generic) else value
