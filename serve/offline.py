"""Decisions for many users, off line: the engine of serving over a file of users, spread by Ray Data."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
from pydantic import ValidationError

from qiance.ledger import LedgerUnavailableError
from serve.answers import Answer, Writer
from serve.args import AppArgs
from serve.assemble import open_engine, open_ledger
from serve.launch import LocalCluster
from serve.problems import Problem
from serve.schemas import DecisionRequest
from serve.slates import Call

USER = "user_id"
FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}
OUTPUT = pa.schema(
    [
        (USER, pa.string()),
        ("decision_id", pa.string()),
        ("position", pa.int32()),
        ("action_id", pa.string()),
        ("strategy_id", pa.string()),
        ("channel", pa.string()),
        ("item_id", pa.string()),
        ("depth", pa.float64()),
        ("headline", pa.string()),
        ("body", pa.string()),
        ("call_to_action", pa.string()),
        ("propensity", pa.float64()),
        ("uplift", pa.float64()),
        ("model_version", pa.string()),
        ("policy_version", pa.string()),
        ("degraded", pa.list_(pa.string())),
        ("problem", pa.string()),
    ]
)
Progress = Callable[[float, str], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Campaign:
    """What is decided for every user: name, surface, and number of actions.

    name: the same name again gives every user the decision of before, so that a run that was stopped can be
    repeated.
    """

    name: str
    surface: str
    n: int = 1


class DecideUsers:
    """One worker: an engine of its own on the shared ledger; holder: in whose name it leases."""

    def __init__(self, args: Mapping[str, Any], campaign: Campaign, holder: str) -> None:
        self._args, self._campaign = AppArgs.model_validate(dict(args)), campaign
        self._ledger = open_ledger(self._args)
        self._service = open_engine(self._args, self._ledger, holder=holder)
        self._writer = Writer(self._service.watcher.catalogue, self._args.currency)

    def __call__(self, users: pa.Table) -> pa.Table:
        """A row per user and position (`OUTPUT`); `problem` says why a user has no decision."""
        ids = users.column(USER).to_pylist()
        rows: list[dict[str, Any]] = []
        calls: list[tuple[str, Call]] = []
        for user in ids:
            try:
                calls.append((user, self._call(user)))
            except (ValidationError, ValueError) as error:
                rows.append({USER: str(user), "problem": f"{USER}: {_first(error)}"})
        size = self._args.batching.max_batch
        for start in range(0, len(calls), size):
            part = calls[start : start + size]
            results = self._service.engine.decide([call for _, call in part])
            for (user, _), result in zip(part, results, strict=True):
                rows += self._rows(user, result)
        return pa.Table.from_pylist(rows, schema=OUTPUT)

    def close(self) -> None:
        """Give leased money back."""
        self._service.close()
        self._ledger.close()

    def _call(self, user: Any) -> Call:
        if not isinstance(user, str):
            raise ValueError(f"{user!r} is not text")
        campaign = self._campaign
        # A keyed hash, since a request id stands in the log and must not name the user.
        request_id = self._ledger.lookup(f"{campaign.name}\x1f{campaign.surface}\x1f{user}")
        request = DecisionRequest(request_id=request_id, user_id=user, surface=campaign.surface, n=campaign.n)
        return Call.of(request, self._args.now())

    def _rows(self, user: str, result: Answer | Problem) -> list[dict[str, Any]]:
        if isinstance(result, Problem):
            return [{USER: user, "problem": str(result.detail)}]
        document = self._writer.document(result, self._service.watcher.state)
        shared = {
            USER: user,
            "decision_id": result.decision_id,
            "model_version": result.model_version,
            "policy_version": result.policy_version,
            "degraded": document["degraded"],
        }
        return [shared | _row(place, action) for place, action in enumerate(document["actions"])]


def decide_users(
    users: Path,
    out: Path,
    args: Mapping[str, Any],
    campaign: Campaign,
    *,
    workers: int = 1,
    address: str | None = None,
    batch: int = 1_024,
    progress: Progress = lambda share, what: None,
) -> dict[str, int]:
    """Decides for every user in the file `users` and writes `OUTPUT` to `out`; counts of what came out.

    users: Parquet or CSV with a column `user_id` of text; a user who is in it twice gets one decision.
    args: of the application (`AppArgs`), for this workspace. workers: engines at once, 0 for one in this
    process without Ray; address: of a running cluster, whose nodes must see the same paths. What is written
    appears whole, when all is decided. ValueError for a file that cannot be read.
    """
    total = _count(users)
    counts = {"users": 0, "decisions": 0, "contacts": 0, "problems": 0}
    draft = out.with_name(f".{out.name}.draft")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        _stream(users, args, campaign, workers, address, batch) as tables,
        pq.ParquetWriter(draft, OUTPUT) as file,
    ):
        for table in tables:
            file.write_table(table)
            _tally(counts, table)
            progress(min(counts["users"] / max(total, 1), 1.0), f"{counts['users']:,} of {total:,} users")
    draft.rename(out)
    return counts


@contextmanager
def _stream(
    users: Path, args: Mapping[str, Any], campaign: Campaign, workers: int, address: str | None, batch: int
) -> Iterator[Iterator[pa.Table]]:
    """Tables of decisions, as they are made."""
    holder = f"decide-{secrets.token_hex(8)}"
    if workers == 0:
        worker = DecideUsers(args, campaign, holder)
        try:
            parts = _dataset(users).to_batches(columns=[USER], batch_size=batch)
            yield (worker(_as_text(pa.Table.from_batches([part]))) for part in parts)
        finally:
            worker.close()
        return
    try:
        with LocalCluster(address=address, proxy="plain"):
            yield _spread(users, args, campaign, holder, workers, batch)
    finally:
        _give_back(args, holder)


def _spread(
    users: Path, args: Mapping[str, Any], campaign: Campaign, holder: str, workers: int, batch: int
) -> Iterator[pa.Table]:
    """Tables of decisions of `workers` actors of Ray Data."""
    import ray

    # The context is of the process: a bar of ours is enough.
    ray.data.DataContext.get_current().enable_progress_bars = False
    read = {"parquet": ray.data.read_parquet, "csv": ray.data.read_csv}[_format(users)]
    decided = (
        read(str(users.resolve()))
        .map_batches(_as_text, batch_format="pyarrow", batch_size=None)
        .map_batches(
            DecideUsers,
            fn_constructor_args=(dict(args), campaign, holder),
            batch_format="pyarrow",
            batch_size=batch,
            concurrency=workers,
            num_cpus=1,
        )
    )
    return (table.cast(OUTPUT) for table in decided.iter_batches(batch_format="pyarrow", batch_size=batch))


def _give_back(args: Mapping[str, Any], holder: str) -> None:
    """End what the workers leased: Ray kills an actor, or lets it end itself and waits for neither."""
    try:
        ledger = open_ledger(AppArgs.model_validate(dict(args)))
        try:
            ledger.end_leases_of(holder)
        finally:
            ledger.close()
    except LedgerUnavailableError as error:
        logger.warning("what the workers leased of budgets goes back when its term ends: %s", error)


def _dataset(users: Path) -> Any:
    if not users.exists():
        raise ValueError(f"users: {users} does not exist; name a Parquet or CSV file with a column {USER!r}")
    try:
        found = pds.dataset(users, format=_format(users))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"users: {users} cannot be read ({str(error).splitlines()[0]})") from None
    if USER not in found.schema.names:
        raise ValueError(f"users: {users} has no column {USER!r} (has {', '.join(found.schema.names)})")
    return found


def _format(users: Path) -> str:
    suffix = users.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"users: {users.name} is of no kind that is read; give {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _count(users: Path) -> int:
    return int(_dataset(users).count_rows())


def _as_text(table: pa.Table) -> pa.Table:
    """Ids as text: a CSV file of numbers is read as numbers."""
    return pa.table({USER: table.column(USER).cast(pa.string())})


def _row(position: int, action: Mapping[str, Any]) -> dict[str, Any]:
    words = action["creative"] or {}
    return {
        "position": position,
        **{name: action[name] for name in ("action_id", "strategy_id", "channel", "item_id", "propensity")},
        "depth": action["offer"]["depth"] if action["offer"] else None,
        **{name: words.get(name) for name in ("headline", "body", "call_to_action")},
        "uplift": action["effect"]["uplift"]["value"] if action["effect"] else None,
    }


def _tally(counts: dict[str, int], table: pa.Table) -> None:
    first = [place in (0, None) for place in table.column("position").to_pylist()]
    problems = table.num_rows - table.column("problem").null_count
    channels: Sequence[str | None] = table.column("channel").to_pylist()
    counts["users"] += sum(first)
    counts["problems"] += problems
    counts["decisions"] += sum(first) - problems
    counts["contacts"] += sum(channel not in (None, "none") for channel in channels)


def _first(error: Exception) -> str:
    return str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
