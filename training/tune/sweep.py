"""A sweep of the response model: what it is over, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.response.config import ResponseParameters, apply_parameters
from training.response.members import ResponseSettings
from training.response.rows import ResponseRows
from training.tune.experiment import Experiment, Halving
from training.tune.space import Space
from training.tune.work import BLOCK, MODES, ResponseWorkshop, SweepData

# Steps before a trial may be stopped. Small trees are the slowest to learn and often the best in the end, and
# trees end by themselves for less than what a network costs: only what goes on for very long is compared.
GRACE = {"network": 3, "trees": 54}
# Trials of trees cost no more than those of networks, and have more to find: they get two of three.
SHARES = {"network": 1, "trees": 2}


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """trials: in all, two of three for the trees. folds: of the rows that a trial is judged on.

    workers: trials at a time, by default one per CPU. address: of a running Ray cluster that sees the same
    paths; else Ray is started on this machine for the time.
    """

    trials: int = 16
    metric: str = "log_loss"
    folds: int = 3
    seed: int = 0
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("folds", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is below {least}")
        if self.metric not in MODES:
            raise ValueError(f"metric: {self.metric!r} is unknown; choose from {', '.join(MODES)}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: {self.workers} is below 1; leave it out for one per CPU")


@dataclass(frozen=True)
class Sweep:
    """What a sweep is over. given: parameters of every trial. mapping: hash of what the mapping says."""

    rows: ResponseRows
    space: Space
    settings: SweepSettings
    given: ResponseParameters
    mapping: str

    def base(self) -> ResponseSettings:
        """What the drawn parameters are laid over."""
        return apply_parameters(self.given, ResponseSettings.for_rows(len(self.rows), self.settings.seed))

    def inputs(self) -> dict[str, Any]:
        """What must be equal for a sweep to go on: how many trials, and at a time, may change."""
        return {
            "data": self.rows.fingerprint,
            "mapping": self.mapping,
            "label": self.rows.label,
            "features": list(self.rows.schema.names),
            "space": self.space.plain,
            "config": self.given.model_dump(mode="json", exclude_none=True),
            "metric": self.settings.metric,
            "folds": self.settings.folds,
            "seed": self.settings.seed,
        }

    def experiment(self) -> Experiment:
        """How it is run."""
        settings, base = self.settings, self.base()
        steps = {"network": base.network.epochs, "trees": -(-base.trees.rounds // BLOCK)}
        return Experiment(
            space=self.space,
            metric=settings.metric,
            mode=MODES[settings.metric],
            trials=settings.trials,
            seed=settings.seed,
            shares=SHARES,
            halving={model: Halving(steps[model], GRACE[model]) for model in steps},
            workshop=lambda: ResponseWorkshop(
                SweepData.of(self.rows, settings.folds, base), base, settings.metric
            ),
            workers=settings.workers,
            address=settings.address,
        )
