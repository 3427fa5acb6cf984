"""The launched policy: what pacing starts from, written once and named by its version."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

KIND = "decision-policy"
PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """A budget's plan over its horizon.

    shadow_price: λ₀ of the allocation, value given up per minor unit of budget; pacing multiplies it.
    pacing: version of the pacing-policy artifact; effect_model: version the plan was made with.
    epsilon: share of exploration; starts: first instant of day 0.
    """

    budget_id: str
    shadow_price: float
    epsilon: float
    starts: datetime
    horizon_days: int
    pacing: str
    effect_model: str

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(json.dumps({**asdict(self), "starts": self.starts.isoformat()}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan of the artifact in `folder`."""
        document = json.loads((folder / PLAN_FILE).read_text())
        return cls(**{**document, "starts": datetime.fromisoformat(document["starts"])})
