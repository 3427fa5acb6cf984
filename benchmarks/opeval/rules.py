"""Other rules for choosing an estimator by the log, to compare our own with.

slope: the path DR, DRos with falling λ, DM, by intervals that must overlap (Su, Srinath & Krishnamurthy, ICML
2020).
least_error: the member of that path with the least estimated mean squared error.
greg: never believe the model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.opeval.problem import Floats
from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.inference import standard_error
from qiance.evaluate.ope_estimators import Terms, dm, dr, dros, greg, terms_of
from qiance.evaluate.ope_tuning import RowEstimate, least_error, weight_grid

# Half-width of an interval of SLOPE in standard errors.
_WIDTH = 2.0


def others(log: BanditLog, policy: Floats, model: Floats) -> dict[str, float]:
    """Rule → value."""
    terms = terms_of(log, policy, model, log.units())
    members = _path(terms)
    return {
        "slope": _slope(members, terms),
        "least_error": least_error(members[0], members[1:], terms.units).value,
        "greg": greg(terms).value,
    }


def _path(terms: Terms) -> list[RowEstimate]:
    """From the least biased to the least varying."""
    shrinkages = (np.geomspace(100.0, 0.01, 9) * float(weight_grid(terms.weight)[-1]) ** 2).tolist()
    shrunk = [dros(replace(terms, parameter=scale)) for scale in shrinkages]
    return [dr(terms), *shrunk, dm(terms)]


def _slope(members: list[RowEstimate], terms: Terms) -> float:
    """The last member up to which all intervals have a point in common."""
    low, high, chosen = -np.inf, np.inf, members[0]
    for one in members:
        half = _WIDTH * standard_error(one.influence, terms.units)
        low, high = max(low, one.value - half), min(high, one.value + half)
        if low > high:
            break
        chosen = one
    return chosen.value
