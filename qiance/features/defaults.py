"""What stands in for a value that is not known: the mean of the group, else of the population.

Learned from the newest feature rows, so that a new user, item or campaign starts as an ordinary one of its
kind. Whoever fills a gap says so; a default is never passed off as a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST_ROWS = 5  # a group of fewer says less than the population does


@dataclass(frozen=True)
class Defaults:
    """Means of features, over everybody and by group.

    population: feature → mean, 0 where no row had a value; groups: group → feature → mean.
    """

    population: Mapping[str, float]
    groups: Mapping[str, Mapping[str, float]]

    @classmethod
    def learn(cls, columns: Mapping[str, Floats], group: Sequence[str] | None = None) -> Defaults:
        """From `[n]` values per feature (NaN for gaps) and the group of each row, if there are groups."""
        population = {name: _mean(values, 0.0) for name, values in columns.items()}
        if group is None:
            return cls(population, {})
        names = np.asarray(group, dtype=object)
        groups = {}
        for name in dict.fromkeys(group):
            rows = names == name
            if rows.sum() >= LEAST_ROWS:
                groups[str(name)] = {f: _mean(v[rows], population[f]) for f, v in columns.items()}
        return cls(population, groups)

    def of(self, group: str | None = None) -> Mapping[str, float]:
        """Feature → default for one of `group`, which may be unknown."""
        return self.groups.get(group, self.population) if group is not None else self.population

    def fill(self, columns: Mapping[str, Floats], group: Sequence[str] | None = None) -> dict[str, Floats]:
        """`columns` with every NaN replaced; a feature that was never learned stays as it is."""
        filled = {}
        for name, values in columns.items():
            gaps = np.isnan(values)
            if name not in self.population or not gaps.any():
                filled[name] = np.asarray(values)
                continue
            if group is None:
                filled[name] = np.where(gaps, self.population[name], values)
            else:
                means = np.array([self.of(one)[name] for one in group])
                filled[name] = np.where(gaps, means, values)
        return filled

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "population": dict(self.population),
            "groups": {name: dict(means) for name, means in self.groups.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Defaults:
        """The inverse of `to_dict`."""
        return cls(data["population"], data["groups"])


def _mean(values: Floats, otherwise: float) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else otherwise
