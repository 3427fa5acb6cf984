"""Logs of a campaign whose true effects are known, as a shop would have them: a file and a mapping."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ARMS = ("none", "mail", "push")


@dataclass(frozen=True)
class Log:
    """data, mapping: files; effect: `[n, 3]` true effects over `none`; chance: `[n, 3]`; arm: `[n]` given."""

    data: Path
    mapping: Path
    effect: np.ndarray
    chance: np.ndarray
    arm: np.ndarray


def write_log(
    folder: Path,
    n: int = 6_000,
    seed: int = 0,
    targeted: bool = False,
    propensity: bool = True,
    **mapping: Any,
) -> Log:
    """Mails work for the young, pushes for who visits little; who visits much answers anyway.

    targeted: who visits much gets mails, others nothing, so that answers and mails go together. propensity: a
    column has that of the arm given. mapping: keys that are added or replaced.
    """
    random = np.random.default_rng(seed)
    age, visits = random.integers(18, 70, n).astype(float), random.poisson(4, n).astype(float)
    city = random.choice(["Rome", "Oslo", "Lima"], n)
    young = age < 40
    base = np.clip(0.12 + 0.05 * (visits - 4), 0.02, 0.6)
    mail, push = np.where(young, 0.2, 0.0), np.where(visits < 4, 0.15, -0.02)
    chance = np.clip(np.column_stack([base, base + mail, base + push]), 0.005, 0.99)
    shares = np.full((n, 3), 1 / 3)
    if targeted:
        score = np.column_stack([0.6 * (4 - visits), 0.6 * (visits - 4), np.zeros(n)])
        shares = 0.04 + 0.88 * np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    arm = (random.random((n, 1)) > shares.cumsum(axis=1)[:, :-1]).sum(axis=1)
    rows = np.arange(n)
    bought = (random.random(n) < chance[rows, arm]).astype(int)
    data = folder / f"log-{seed}-{targeted}.csv"
    with data.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["age", "visits", "city", "arm", "p", "bought"])
        writer.writerows(zip(age, visits, city, np.array(ARMS)[arm], shares[rows, arm], bought, strict=True))
    columns = {"arm": "arm"} | ({"propensity": "p"} if propensity else {})
    content = {
        "kind": "responses",
        "name": "campaign",
        "columns": columns,
        "features": {"numeric": ["age", "visits"], "categorical": ["city"]},
        "labels": {"conversion": "bought"},
        "control": "none",
    }
    place = folder / f"campaign-{seed}-{targeted}-{propensity}.yaml"
    place.write_text(yaml.safe_dump(content | mapping), encoding="utf-8")
    return Log(data, place, chance - chance[:, :1], chance, arm)
