"""Which log is read, and what has to be known about it to read the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qiance.cli.stages import Stage
from qiance.data.errors import DataError
from qiance.data.hillstrom import EMAIL_COST, read_hillstrom
from qiance.data.mapped import read_mapped
from qiance.data.mapping import load_mapping
from qiance.data.open_bandit import read_open_bandit
from qiance.data.responses import ResponseTable
from qiance.data.roles import MappingKind
from qiance.domain import StrategyKind
from qiance.settings import DataSettings

GET_HILLSTROM = (
    "pass --path FILE (CSV or CSV.gz); the file is Kevin Hillstrom's MineThatData E-Mail Analytics And "
    "Data Mining Challenge of 2008, at http://www.minethatdata.com/"
    "Kevin_Hillstrom_MineThatData_E-MailAnalytics_DataMiningChallenge_2008.03.20.csv"
)


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of log.

    labels: the outcome to optimise, in order of preference. arm_kind: kind of a strategy that gives an arm
    to everybody. arm_words: how an arm is named in a title. channel: where arms reach the user, if known.
    notes: what a reader of the report has to know, a sentence each.
    """

    title: str
    labels: tuple[str, ...]
    arm_kind: StrategyKind
    arm_words: str
    channel: str
    terms: str
    notes: tuple[str, ...] = ()


SOURCES = {
    "hillstrom": Source(
        title="The offline loop on Hillstrom's e-mail test",
        labels=("click", "conversion", "sales"),
        arm_kind=StrategyKind.CONTENT,
        arm_words="{arm}",
        channel="email",
        terms="MineThatData E-Mail Analytics And Data Mining Challenge, Kevin Hillstrom, 2008: none stated",
        notes=(
            "A click is a visit to the site within two weeks of the e-mail; sales are the spend in them.",
            f"The data names no cost of an e-mail: {EMAIL_COST} cents are assumed.",
        ),
    ),
    "open-bandit": Source(
        title="The offline loop on Open Bandit",
        labels=("click",),
        arm_kind=StrategyKind.RECOMMENDATION,
        arm_words="item {arm}",
        channel="display",
        terms="Open Bandit Dataset, ZOZO, Inc. (Saito et al., 2021): CC BY 4.0",
    ),
    "mapped": Source(
        title="The offline loop on your response log",
        labels=("conversion", "click", "sales"),
        arm_kind=StrategyKind.CONTENT,
        arm_words="{arm}",
        channel="",
        terms="your own data",
    ),
}


def check_arguments(settings: DataSettings) -> None:
    """Refuse what cannot be read before a run is begun; `DataError` or `MappingError` says what to pass."""
    if settings.source == "hillstrom" and settings.path is None:
        raise DataError("Hillstrom", "no file was given and no package carries it", GET_HILLSTROM)
    if settings.path is not None and not settings.path.exists():
        raise DataError(settings.path, "does not exist", "pass the path of your copy with --path")
    if settings.source == "mapped":
        assert settings.mapping is not None, "settings require it for mapped data"
        _check_mapping(settings.mapping)


def _check_mapping(path: Path) -> None:
    mapping = load_mapping(path)
    if mapping.kind is not MappingKind.RESPONSES:
        problem = f"maps {mapping.kind.value}, and the offline loop learns from responses"
        raise DataError(path, problem, "map one row per contact with `kind: responses`")
    for name in ("arm", "propensity"):
        if name not in mapping.columns and name not in mapping.constants:
            problem = f"maps no {name}, and the offline loop compares policies by it"
            raise DataError(path, problem, f"map columns.{name}; to predict alone, use `qiance train effect`")


def read_responses(settings: DataSettings, quarantine: Path, stage: Stage) -> ResponseTable:
    """The log, checked row by row; faults go to a file under `quarantine`."""

    def tell(what: str, done: float) -> None:
        stage.tell(done, what)

    if settings.source == "hillstrom":
        assert settings.path is not None, "check_arguments asks for it"
        return read_hillstrom(settings.path, quarantine=quarantine, progress=tell)
    if settings.source == "open-bandit":
        return read_open_bandit(settings.path, quarantine=quarantine, progress=tell)
    assert settings.path is not None, "settings require it for mapped data"
    assert settings.mapping is not None, "settings require it for mapped data"
    mapping = load_mapping(settings.mapping)
    result = read_mapped(settings.path, mapping, quarantine=quarantine, progress=tell)
    assert result.responses is not None, "check_arguments refuses other kinds"
    return result.responses
