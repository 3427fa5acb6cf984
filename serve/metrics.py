"""Metrics of the application, exported through Ray to Prometheus (names get the prefix `ray_`)."""

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge, Histogram

MAX_SURFACES = 50  # a client names the surface: without a bound it could fill the memory with series
OTHER = "other"
LATENCY_BUCKETS_MS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0]


class GatewayMetrics:
    """Counts decisions and outcomes of one gateway replica."""

    def __init__(self) -> None:
        self._decisions = Counter("qiance_decisions_total", "Decisions answered", ("surface", "holdout"))
        self._latency = Histogram(
            "qiance_decision_latency_ms", "Time to decide and log, ms", LATENCY_BUCKETS_MS, ("surface",)
        )
        self._degraded = Counter("qiance_degraded_total", "Answers that lacked a part", ("part",))
        self._outcomes = Counter("qiance_outcomes_total", "Outcome events", ("result",))
        self._surfaces: set[str] = set()

    def decided(self, surface: str, holdout: bool, degraded: Sequence[str], seconds: float) -> None:
        """Count one answered decision."""
        surface = self._known(surface)
        self._decisions.inc(1, {"surface": surface, "holdout": str(holdout).lower()})
        self._latency.observe(seconds * 1_000.0, {"surface": surface})
        self._lacked(degraded)

    def _known(self, surface: str) -> str:
        if len(self._surfaces) < MAX_SURFACES:
            self._surfaces.add(surface)
        return surface if surface in self._surfaces else OTHER

    def recorded(self, accepted: int, duplicates: int, rejected: int, degraded: Sequence[str] = ()) -> None:
        """Count one batch of outcome events."""
        self._lacked(degraded)
        counts = {"accepted": accepted, "duplicate": duplicates, "rejected": rejected}
        for result, count in counts.items():
            if count:
                self._outcomes.inc(count, {"result": result})

    def _lacked(self, parts: Sequence[str]) -> None:
        for part in parts:
            self._degraded.inc(1, {"part": part})


class PacerMetrics:
    """Budget and shadow price as the pacer sees them."""

    def __init__(self) -> None:
        self._spent = Gauge("qiance_budget_spent", "Minor units spent", ("budget",))
        self._cap = Gauge("qiance_budget_cap", "Minor units that may be spent", ("budget",))
        self._price = Gauge("qiance_shadow_price", "Value given up per minor unit of budget", ("budget",))

    def paced(self, budget: str, spent: int, cap: int, shadow_price: float) -> None:
        """Publish where a budget stands."""
        self._spent.set(spent, {"budget": budget})
        self._cap.set(cap, {"budget": budget})
        self._price.set(shadow_price, {"budget": budget})
