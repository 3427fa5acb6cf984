"""Typed settings: one YAML file, then environment overrides, then the caller's; every error names its key.

`QIANCE__SERVE__PORT=0` overrides `serve.port`. Nothing here reads the environment by itself: the caller
passes it to `load_settings`, once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from qiance.domain import Money, Purpose
from qiance.settings_sources import (
    ENV_PREFIX,
    HIDDEN,
    SettingsError,
    env_values,
    explain,
    flatten,
    nest,
    read_yaml,
    refuse_unknown,
    without_password,
)

DEFAULT_WORKSPACE = Path("runs/latest")


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


_Number = BeforeValidator(_no_boolean)
Fraction = Annotated[float, _Number, Field(ge=0.0, le=1.0)]
Count = Annotated[int, _Number, Field(ge=1)]
NonNegative = Annotated[int, _Number, Field(ge=0)]
Positive = Annotated[float, _Number, Field(gt=0.0)]


class Section(BaseModel):
    """Common rules: unknown keys and NaN are refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class LedgerSettings(Section):
    url: str | None = Field(
        None,
        description="sqlite:///path or postgresql+psycopg://user@host/name; null: SQLite in the workspace",
    )


class DataSettings(Section):
    source: Literal["complete-journey", "open-bandit", "hillstrom", "mapped"] = Field(
        "complete-journey", description="which reader; mapped reads your own files by data.mapping"
    )
    path: Path | None = Field(None, description="file or folder to read; null: the packaged data")
    mapping: Path | None = Field(None, description="YAML that maps your columns, for data.source mapped")
    cost_fraction: Fraction = Field(
        0.7, description="cost of goods as a fraction of sales, where a response log has no margin"
    )
    brand_cost_fraction: dict[str, Fraction] = Field(
        default_factory=dict,
        description="Complete Journey: unit cost as a fraction of the price, by brand; empty: its defaults",
    )


class FrequencyCap(Section):
    contacts: Count = Field(description="most contacts of a user")
    days: Positive = Field(le=366.0, description="in any so many days")
    channel: Literal["email", "push", "display", "mailer"] | None = Field(
        None, description="over this channel; null: over all together"
    )


class ServeSettings(Section):
    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; others than loopback need keys"
    )
    port: Annotated[int, _Number] = Field(8000, ge=0, le=65535, description="port; 0 picks a free one")
    proxy: Literal["auto", "haproxy", "plain"] = Field(
        "auto", description="what stands before the replicas; auto: haproxy where its package runs"
    )
    clock: Literal["system", "request"] = Field(
        "system", description="request: simulated time from context.now"
    )
    max_body_bytes: Count = Field(1_048_576, description="largest request body, bytes")
    holdout: Fraction = Field(0.15, description="fraction of users who always get control")
    epsilon: Fraction = Field(0.1, description="exploration: probability shared by all admissible actions")
    outcome_window_hours: Positive = Field(12.0, description="hours after which an outcome no longer counts")
    max_n: Count = Field(20, description="most actions in one answer")
    max_candidates: Count = Field(1000, description="most candidates in one request")
    request_timeout_s: Positive = Field(5.0, description="seconds after which a request is given up")
    topology: Literal["ingress", "deployment"] = Field(
        "ingress", description="where the predictor runs: with the HTTP replica, or as its own deployment"
    )
    frequency_caps: tuple[FrequencyCap, ...] = Field(
        (), description="limits of contacts per user, such as [{contacts: 3, days: 7, channel: email}]"
    )
    max_batch: Count = Field(32, description="most decisions of one pass and one commit")
    max_waiting: Count = Field(64, description="most decisions that wait; more are refused with 503")
    target_ms: Positive = Field(
        250.0,
        description="in overload as many are taken as are answered in this time; others are refused with 503",
    )
    lease_term_s: Positive = Field(
        30.0, description="seconds after which the budget that a dead replica had leased goes back"
    )
    replay_days: Positive = Field(30.0, description="days for which `qiance replay` can score again")


class FeatureSettings(Section):
    online: Literal["sqlite", "redis"] = Field(
        "sqlite", description="where features are read at a decision; redis: at QIANCE_REDIS, host:port,…"
    )
    wait_ms: Positive = Field(
        50.0, description="longest wait for the online store at a decision, milliseconds"
    )
    refresh_s: Positive = Field(2.0, description="seconds after which items in memory are read again")
    embeddings: bool = Field(True, description="whether texts of items are embedded, if the model is there")


class TrainingSettings(Section):
    epochs: Count = Field(40, description="most passes over the training rows")
    batch_size: Count = Field(512, description="rows per gradient step")
    learning_rate: Positive = Field(1e-3, description="step size of the optimiser")
    heads: Annotated[int, _Number] = Field(8, ge=2, description="bootstrap heads that give the intervals")
    hidden: tuple[Count, ...] = Field((64, 32), min_length=1, description="widths of the hidden layers")
    workers: Count = Field(1, description="Ray Train workers")
    patience: Count = Field(3, description="epochs without improvement before stopping")
    threads: Count = Field(1, description="torch threads per worker; two collapse on busy cores")
    checkpoint_steps: Count = Field(
        1_000, description="gradient steps between checkpoints, beside one after each epoch"
    )
    calibrate_by: str | None = Field(
        None, description="feature by whose values calibration differs; null: the arm, or the channel"
    )
    negative_ratio: Positive | None = Field(
        None, description="rows without a response kept for each with one when training; null: all"
    )
    text_components: NonNegative = Field(
        4, description="numbers that the text embedding of a creative is read by; 0: not read"
    )


class PromotionSettings(Section):
    log_loss_margin: Fraction = Field(
        0.01, lt=1.0, description="how much worse a challenger's log loss may be, share of the champion's"
    )
    ece_margin: Fraction = Field(
        0.01, lt=1.0, description="how much worse its calibration error may be, in probability"
    )
    confidence: Fraction = Field(
        0.95, ge=0.5, lt=1.0, description="of the intervals that must lie below both"
    )
    protected: tuple[str, ...] = Field(
        (),
        description="columns of users or features of a response log that no model sees and groups are "
        "audited by, such as [age]",
    )
    max_gap: Fraction = Field(
        0.05, description="largest gap between predicted and observed rate of a protected group"
    )
    max_exposure_gap: Fraction | None = Field(
        None,
        description="largest gap between a group's exposure and that of all rows; null: any is let through",
    )
    max_depth_gap: Annotated[float, _Number, Field(ge=0.0)] | None = Field(
        None,
        description="largest gap between a group's offer depth and that of all, where the model would "
        "choose; null: any",
    )
    depth_feature: str | None = Field(
        None, description="numeric feature of a response log that holds the depth of the offer"
    )


class GateSettings(Section):
    margin: float = Field(
        0.0,
        description="by how much a policy must beat the live one to go live, minor units a decision",
    )
    margins: dict[str, float] = Field(
        default_factory=dict, description="the same of single campaigns, such as {brief-id: 2.5}"
    )
    confidence: Fraction = Field(
        0.95, ge=0.5, lt=1.0, description="of the interval whose lower bound must exceed the margin"
    )
    days: Positive = Field(28.0, le=366.0, description="how far back logged decisions are used")
    max_rows: Count = Field(50_000, description="most logged decisions used; the newest")
    largest: Positive | None = Field(
        None,
        description="margin of one decision beyond which shadow mode counts it as that, minor units; null: "
        "by the first decisions",
    )
    timeout_s: Positive = Field(60.0, description="seconds after which an evaluation by HTTP is given up")


class MarketSettings(Section):
    arrivals_per_day: Count = Field(1_000, description="users who come on a simulated day")
    seed_days: Count = Field(40, description="simulated days of the logging policy before the first model")
    explore_days: Count = Field(20, description="simulated days that randomise over approved strategies")
    live_days: Count = Field(8, description="simulated days served over HTTP")
    live_users: Count = Field(1_500, description="users whose decisions are served over HTTP")
    live_per_day: Count = Field(600, description="decisions served over HTTP on a simulated day")


class RlSettings(Section):
    enabled: bool = Field(True, description="whether RLlib tunes the shadow price")
    iterations: Count = Field(15, description="training iterations")
    horizon: Count = Field(10, description="days of an episode")
    users: Count = Field(400, description="users in an episode")


class LlmSettings(Section):
    enabled: bool = Field(True, description="whether a language model writes creatives")
    model: str = Field(
        "embedded", min_length=1, description="embedded, bilingual, a local folder, or a Hugging Face id"
    )
    adapter: Path | None = Field(
        None, description="artifact of `qiance train writer` that was tuned on this model; null: none"
    )
    endpoint: str | None = Field(
        None,
        description="address of a server such as vLLM that has the model, e.g. http://llm:8000/v1",
    )
    endpoint_key_file: Path | None = Field(None, description="file that holds that server's key; null: none")
    max_seconds: Positive = Field(120.0, description="seconds for a brief's words; templates write the rest")
    max_waiting: Count = Field(50, description="briefs that may wait; further ones are refused with 429")
    samples: Count = Field(3, description="texts tried per creative; the best is kept")
    cache_dir: Path = Field(Path(".cache"), description="folder for converted weights")


class BriefSettings(Section):
    proposer: Path | None = Field(
        None, description="model of `qiance train proposer` that proposes for briefs too; null: none"
    )
    recommender: Path | None = Field(
        None, description="model of `qiance train recommend` that retrieves items for briefs; null: none"
    )
    country: str = Field(
        "US", description="ISO 3166 code of the country whose public holidays promotions are planned around"
    )


class BudgetSettings(Section):
    amount: str = Field("1500.00", description='what may be spent, major units in quotes such as "1500.00"')
    max_depth: Fraction = Field(0.4, lt=1.0, description="deepest discount, fraction of the price")
    min_margin: Fraction = Field(0.05, description="least margin, fraction of the price")

    @field_validator("amount", mode="before")
    @classmethod
    def _amount(cls, value: object) -> object:
        if isinstance(value, float):
            raise ValueError("is a float, which cannot hold every amount; put it in quotes")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        try:
            amount = Decimal(value) if isinstance(value, str) else None
        except InvalidOperation:
            amount = None
        if amount is None or not amount.is_finite() or not 0 < amount <= Decimal("1e12"):
            raise ValueError("should be a positive amount of money, at most 1e12")
        return value


class GuardSettings(Section):
    rules: Path | None = Field(None, description="the shop's own rules of the text lint (YAML); null: none")


class PrivacySettings(Section):
    unrecorded_consent: Literal["denied", "granted"] = Field(
        "denied", description="what a user counts as having said who was never asked"
    )

    @property
    def unrecorded(self) -> frozenset[Purpose]:
        """The purposes that a user who was never asked counts as having agreed to."""
        return frozenset(Purpose) if self.unrecorded_consent == "granted" else frozenset()


class GrafanaSettings(Section):
    url: str | None = Field(None, description="where dashboards are published; null: nowhere")
    token: SecretStr | None = Field(None, description="service account token")


class Settings(Section):
    """All settings; the defaults run the whole loop on the packaged data."""

    tenant: str = Field(
        "default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="whose data it is"
    )
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="ISO 4217 code of every amount")
    seed: NonNegative = Field(0, description="seed of everything random")
    pseudonym_key_file: Path | None = Field(
        None, description="secret key of the pseudonyms; null: secrets/pseudonym.key in the workspace"
    )
    ledger: LedgerSettings = LedgerSettings()
    data: DataSettings = DataSettings()
    serve: ServeSettings = ServeSettings()
    features: FeatureSettings = FeatureSettings()
    training: TrainingSettings = TrainingSettings()
    promotion: PromotionSettings = PromotionSettings()
    gate: GateSettings = GateSettings()
    market: MarketSettings = MarketSettings()
    rl: RlSettings = RlSettings()
    llm: LlmSettings = LlmSettings()
    briefs: BriefSettings = BriefSettings()
    budget: BudgetSettings = BudgetSettings()
    guard: GuardSettings = GuardSettings()
    privacy: PrivacySettings = PrivacySettings()
    grafana: GrafanaSettings = GrafanaSettings()

    @model_validator(mode="after")
    def _mapped_needs_files(self) -> Settings:
        for name in ("path", "mapping"):
            if self.data.source == "mapped" and getattr(self.data, name) is None:
                raise ValueError(f"data.{name}: None, but data.source is mapped; set data.{name}")
        return self

    @property
    def total_budget(self) -> Money:
        """`budget.amount` as money in `currency`."""
        return Money.of(self.budget.amount, self.currency)

    def ledger_url(self, workspace: Path) -> str:
        """Where the ledger is: `ledger.url`, else a SQLite file in `workspace`."""
        return self.ledger.url or f"sqlite:///{Path(workspace).absolute() / 'ledger.db'}"

    def key_file(self, workspace: Path) -> Path:
        """Where the pseudonym key is: `pseudonym_key_file`, else in `workspace`."""
        return self.pseudonym_key_file or Path(workspace) / "secrets" / "pseudonym.key"

    def redacted(self) -> dict[str, Any]:
        """The settings as plain data for reports, with passwords and tokens hidden."""
        plain = self.model_dump(mode="json")
        if self.ledger.url is not None:
            plain["ledger"]["url"] = without_password(self.ledger.url)
        if self.grafana.token is not None:
            plain["grafana"]["token"] = HIDDEN
        return plain


def load_settings(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from the YAML file, then `env`, then `overrides` (dotted keys or nested); the last wins.

    env: usually `os.environ`; only names that start with `QIANCE__` are looked at. An empty value leaves
    the setting alone, `null` clears it, and a value in [] or {} is read as YAML.
    Raises SettingsError with one line per mistake.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    layers = (
        (flatten(read_yaml(path), _sections()) if path is not None else {}, str(path)),
        (dict(env_values(env or {})), "environment"),
        (flatten(overrides or {}, _sections()), "override"),
    )
    for layer, origin in layers:
        for key, value in layer.items():
            values[key] = value
            origins[key] = (
                f"{ENV_PREFIX}{key.upper().replace('.', '__')}" if origin == "environment" else origin
            )
    known = known_keys()
    refuse_unknown(values, origins, known)
    try:
        return Settings.model_validate(nest(values))
    except ValidationError as error:
        problems = [explain(dict(problem), origins, known) for problem in error.errors()]
        raise SettingsError("\n".join(problems)) from None


def require_keys_for(host: str, has_keys: bool) -> None:
    """Refuses to serve on an address that others can reach while no API key exists."""
    if not has_keys and not is_loopback(host):
        raise SettingsError(
            f"serve.host: {host!r} can be reached from other machines and there is no API key; "
            "create one with `qiance keys create NAME --scope admin`, or set serve.host to 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name other than localhost is taken to be reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def known_keys() -> dict[str, str]:
    """Every dotted key with its description."""
    keys = {name: field.description or "" for name, field in Settings.model_fields.items()}
    for section, model in _sections().items():
        del keys[section]
        keys |= {f"{section}.{name}": field.description or "" for name, field in model.model_fields.items()}
    return keys


__all__ = [
    "DEFAULT_WORKSPACE",
    "Settings",
    "SettingsError",
    "is_loopback",
    "known_keys",
    "load_settings",
    "require_keys_for",
]
