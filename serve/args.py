"""The one typed argument of the application builder; its values stand in the Serve YAML."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qiance.domain import Cap, Channel, Purpose


class LlmArgs(BaseModel):
    """The language model that writes creatives; disabled or unavailable means bound templates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    model: str = Field(
        "embedded", description="`embedded`, `bilingual`, a local folder, or a Hugging Face id"
    )
    adapter: Path | None = Field(None, description="Artifact of `qiance train writer` for this model")
    endpoint: str | None = Field(
        None, description="Address of an OpenAI-compatible server that runs `model`, e.g. http://llm:8000/v1"
    )
    endpoint_key_file: Path | None = Field(None, description="File that holds the server's key")
    cache_dir: Path = Path(".cache")
    samples: int = Field(3, ge=1, le=8, description="Texts tried per creative; the best is kept")
    max_seconds: float = Field(120.0, gt=0, description="After that, templates write what is left")
    max_waiting: int = Field(50, ge=1, description="Briefs that may wait; further ones are refused with 429")
    threads: int = Field(1, ge=1, description="More than one pays only on idle cores")


class BriefArgs(BaseModel):
    """What proposes for briefs, beside what always does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    proposer: Path | None = Field(None, description="Artifact of `qiance train proposer` that is asked too")
    recommender: Path | None = Field(
        None, description="Artifact of `qiance train recommend` that retrieves items from the catalogue"
    )
    country: str = Field("US", description="ISO 3166 code of the country whose public holidays count")


class FeatureArgs(BaseModel):
    """How features are read at a decision."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wait_ms: float = Field(
        50.0, gt=0, description="Longest wait for the online store; then the snapshot or defaults stand in"
    )
    refresh_s: float = Field(2.0, gt=0, description="How often the items in memory are read again")


class PredictorArgs(BaseModel):
    """Where and how the effect model is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 pays on a GPU only; `qiance replay --dtype` has to be told of it"
    )
    cuda_graphs: bool = Field(
        False, description="Record passes of 1, 2, 4, … users at the start and repeat them; GPU only"
    )
    threads: int = Field(1, ge=1, description="Threads of one pass; more than one pays only on idle cores")


class BatchArgs(BaseModel):
    """How requests that arrive together are decided together, and when more are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_batch: int = Field(32, ge=1, description="Most decisions of one pass and one commit")
    max_waiting: int = Field(64, ge=1, description="Most requests that wait; more are refused with 503")
    target_ms: float = Field(
        250.0, gt=0, description="In overload as many are taken as are answered in this time; others get 503"
    )
    workers: int = Field(
        1,
        ge=1,
        le=8,
        description="Batches under way at once; more than one lose more to Python's lock than they gain",
    )


class CapArgs(BaseModel):
    """At most `contacts` contacts of a user in any `days`, over one channel or over all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    contacts: int = Field(ge=1)
    days: float = Field(gt=0, le=366)
    channel: Channel | None = None


class LeaseArgs(BaseModel):
    """Budget that a replica takes ahead of need."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    term_s: float = Field(30.0, gt=0, description="What a dead replica had leased goes back after so long")


class GateArgs(BaseModel):
    """What a policy has to show before it goes live, and how far its evaluation may go."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    margin: float = Field(0.0, description="Minor units per decision by which it must beat the live policy")
    margins: dict[str, float] = Field({}, description="The same of single campaigns")
    confidence: float = Field(0.95, ge=0.5, lt=1.0)
    days: float = Field(28.0, gt=0, le=366, description="How far back logged decisions are used")
    max_rows: int = Field(50_000, ge=1, description="Most logged decisions used")
    timeout_s: float = Field(60.0, gt=0, description="After that an evaluation is given up")
    margin_rate: float = Field(0.3, ge=0, le=1, description="Margin of what was not on offer, of its sales")


class AppArgs(BaseModel):
    """Arguments of `serve.app:build`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workspace: Path = Field(description="Folder of the run that trained the models")
    ledger_url: str | None = Field(None, description="SQLAlchemy URL; None is SQLite in the workspace")
    ledger_url_file: Path | None = Field(None, description="File that holds the URL, e.g. a mounted secret")
    key_file: Path | None = Field(None, description="Pseudonym key; None is the workspace's own")
    tenant: str = "default"
    currency: str = "USD"
    clock: Literal["system", "request"] = Field(
        "system", description="`request` takes the time from context.now: for simulations only"
    )
    clock_offset_s: float = Field(
        0.0, description="Added to the system's time, to serve a campaign of the past; `qiance up` sets it"
    )
    holdout: float = Field(0.1, ge=0.0, lt=1.0)
    epsilon: float = Field(0.1, gt=0.0, le=1.0)
    outcome_window_hours: float = Field(24.0, gt=0.0)
    max_n: int = Field(20, ge=1)
    max_candidates: int = Field(1_000, ge=1)
    max_body_bytes: int = Field(1_048_576, ge=1_024)
    request_timeout_s: float = Field(5.0, gt=0.0)
    min_margin: float = Field(0.05, ge=0.0, lt=1.0)
    guard_rules: Path | None = Field(None, description="The shop's own rules of the text lint")
    seed: int = 0
    unrecorded_consent: Literal["denied", "granted"] = Field(
        "denied", description="What a user counts as having said who was never asked for consent"
    )
    topology: Literal["ingress", "deployment"] = Field(
        "ingress",
        description="Where the predictor runs: in the replica that speaks HTTP, or as a deployment of "
        "its own, with a GPU for example, asked once per batch",
    )
    frequency_caps: tuple[CapArgs, ...] = Field((), description="Limits of how often a user is contacted")
    batching: BatchArgs = BatchArgs()
    leases: LeaseArgs = LeaseArgs()
    gate: GateArgs = GateArgs()
    spool_bytes: int = Field(
        67_108_864, ge=4_096, description="Most that is kept on the local disk while the ledger is down"
    )
    replay_days: float = Field(30.0, gt=0, description="How long item values are kept for `qiance replay`")
    predictor: PredictorArgs = PredictorArgs()
    features: FeatureArgs = FeatureArgs()
    llm: LlmArgs = LlmArgs()
    briefs: BriefArgs = BriefArgs()

    @property
    def caps(self) -> tuple[Cap, ...]:
        """The frequency caps, as the ledger takes them."""
        return tuple(Cap(cap.contacts, cap.days, cap.channel) for cap in self.frequency_caps)

    @property
    def unrecorded(self) -> frozenset[Purpose]:
        """Purposes that a user who was never asked counts as having agreed to."""
        return frozenset(Purpose) if self.unrecorded_consent == "granted" else frozenset()

    @property
    def ledger_timeout_s(self) -> float:
        """Seconds that a request waits for the ledger: twice, for a lock or a lost connection, is in time."""
        return 0.4 * self.request_timeout_s

    def now(self) -> datetime:
        """The system's time, moved by the offset."""
        return datetime.now(UTC) + timedelta(seconds=self.clock_offset_s)

    def open_url(self) -> str:
        """The ledger's URL: the file's content, the URL given, or SQLite in the workspace."""
        if self.ledger_url_file is not None:
            return self.ledger_url_file.read_text().strip()
        return self.ledger_url or f"sqlite:///{self.workspace.resolve() / 'ledger.db'}"
