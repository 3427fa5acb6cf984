"""The MineThatData e-mail challenge: a randomised e-mail test with visits, conversions and spend."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from qiance.data.mapped import Progress, read_mapped
from qiance.data.mapping import load_mapping
from qiance.data.responses import ResponseTable

EMAIL_COST = 10


def read_hillstrom(
    path: Path,
    *,
    email_cost: int = EMAIL_COST,
    quarantine: Path | None = None,
    progress: Progress | None = None,
) -> ResponseTable:
    """Read the challenge's CSV (gzipped or not): 64,000 customers, arms by `segment`, control `No E-Mail`.

    A visit is the click, spend the sales in cents; the propensity is 1/3 by design.
    email_cost: cents per e-mail. The data names no cost: the default of 10 is an assumption (an e-mail
    itself is cheaper, but it also uses up attention), to be replaced by the retailer's own figure.
    """
    with as_file(files("qiance.data") / "maps" / "hillstrom.yaml") as place:
        mapping = load_mapping(place)
    costs = dict.fromkeys(("Mens E-Mail", "Womens E-Mail"), email_cost)
    result = read_mapped(
        path, mapping.model_copy(update={"arm_cost": costs}), quarantine=quarantine, progress=progress
    )
    assert result.responses is not None
    return result.responses
