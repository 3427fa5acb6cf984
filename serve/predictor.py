"""The predictor: reads users' features, scores the live candidates for all of them in one pass."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np

from qiance.artifacts.effect import EffectModel
from qiance.decide.predictor import ActionGrid, FramePredictor, GridPredictor
from qiance.decide.unknown import USERS, Blind, Unknown
from qiance.domain import Action, Audience, GridPrediction, UserTable
from qiance.features import user_row
from qiance.features.columns import EFFECT_SCHEMA, unread
from qiance.features.frames import FrameStore
from qiance.features.online import OnlineReader
from qiance.features.user_row import UserRows
from qiance.features.words import TEXT_ENCODER
from qiance.guard import Guard
from qiance.ledger import NO_VERSION, Ledger
from qiance.ledger.schema import to_micros
from qiance.strategy.audience import audience_mask
from qiance.workspace import Snapshot, Workspace
from serve.items import ItemFrame, ItemSnapshot
from serve.live import LiveState, Watcher, floors
from serve.profile import KnownRow
from serve.scoring import Mask, NoModelError, ScoredBatch, ScoreRequest
from serve.users import Consents, LiveUsers, UserRead

REFRESH_S = 5.0
REPLAY_DAYS = 30.0
STRANGER = ""  # no user has this id
logger = logging.getLogger(__name__)
ModelLoader = Callable[[Path], EffectModel]


def load_model(path: Path) -> EffectModel:
    """The effect model on the CPU, one thread a pass."""
    return EffectModel.load(path, EFFECT_SCHEMA)


@dataclass(frozen=True)
class Prepared:
    """What scoring needs besides the users, worked out once: it holds from `since_us` to `until_us`.

    static: `[A]` margin floor and stock admit the action. audiences: each rule with its columns `[A]`.
    values: `[I]` per item feature; items: their content hash. cold: `[A]`, without control, the item's values
    are defaults. unknown: how effects differ between users, and between items. unread: the model reads words
    by their vectors, and some words have none.
    """

    state: LiveState
    model: EffectModel
    frame: ItemFrame
    since_us: int
    until_us: float
    grid: ActionGrid
    static: Mask
    audiences: tuple[tuple[Audience, Mask], ...]
    categories: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    items: str
    cold: Mask
    unknown: Unknown
    unread: bool

    def fits(self, state: LiveState, model: EffectModel, frame: ItemFrame, now_us: int) -> bool:
        """Whether it is about these, at this instant."""
        same = self.state is state and self.model is model and self.frame is frame
        return same and self.since_us <= now_us <= self.until_us


class Predictor:
    """Scores users against what is live; a plain class, safe to use from several threads.

    consents: asked where no request says whether the user agreed. replay_days: how long the item values of a
    decision are kept. load: how a model is loaded, and onto which device. warm: numbers of users that are
    scored before a model or a set of candidates is used, since the first pass of a size may be slow.
    """

    def __init__(
        self,
        workspace: Workspace,
        ledger: Ledger,
        reader: OnlineReader,
        consents: Consents,
        clock: Callable[[], datetime],
        min_margin: float,
        guard: Guard,
        refresh_s: float = REFRESH_S,
        replay_days: float = REPLAY_DAYS,
        load: ModelLoader = load_model,
        warm: Sequence[int] = (1,),
    ) -> None:
        self._warm = tuple(warm)
        self._workspace, self._clock, self._min_margin = workspace, clock, min_margin
        self._vectors = partial(ledger.text_vectors, TEXT_ENCODER)
        self._load = load
        self.snapshot = Snapshot.load(workspace.snapshot)
        self._frames, self._replay = FrameStore(workspace.frames), timedelta(days=replay_days)
        self.users = LiveUsers(reader, consents, self.snapshot)
        self._lock = threading.Lock()
        self._live: tuple[LiveState, EffectModel] | None = None
        self._ready: Prepared | None = None
        self.items = ItemSnapshot(reader, self.snapshot, refresh_s, self._follow_items)
        self._watcher = Watcher(ledger, self.snapshot.catalogue, guard, self._adopt)

    def close(self) -> None:
        """Stop the threads that follow the ledger and the items."""
        self._watcher.close()
        self.items.close()

    def _adopt(self, state: LiveState) -> None:
        """Load the model that the version row names, if it is another one, warm it up, and only then use it.

        State and model change together, so that every answer is of exactly one model.
        """
        version = state.versions.model
        if version == NO_VERSION:
            return
        model = self._live[1] if self._live else None
        if model is None or model.version != version:
            model = self._load(self._workspace.artifact("effect-model", version))
        prepared = self._prepare(state, model, to_micros(self._clock()))
        somebody = ScoreRequest(self.snapshot.users.user_ids[0], 0, self._clock(), False)
        for users in self._warm:
            self._score(prepared, [somebody] * users)
        self._ready = prepared
        self._live = (state, model)

    def _follow_items(self) -> None:
        """Prepare for changed items ahead of the next decision; forget those that no replay needs."""
        if self._ready is not None:
            self._keep(self._ready.values)  # used until now, so that it is kept from now on
        if self._live is not None:
            self._current(to_micros(self._clock()))
        self._frames.prune(datetime.now(UTC) - self._replay)

    @property
    def model(self) -> EffectModel:
        """The champion; NoModelError while none is registered."""
        return self._serving()[1]

    @property
    def live_state(self) -> LiveState:
        """What the ledger says is live."""
        return self._watcher.state

    def now(self) -> datetime:
        """The service's time."""
        return self._clock()

    def _serving(self) -> tuple[LiveState, EffectModel]:
        live = self._live
        if live is None:
            raise NoModelError("versions.model: no model is registered; run `qiance run` first")
        return live

    def score(self, requests: Sequence[ScoreRequest]) -> ScoredBatch:
        """Scores of the live candidates for every request, in one pass over all of them."""
        # Items move by the hour, requests of one pass lie within milliseconds.
        return self._score(self._current(max(r.at_us for r in requests)), requests)

    def _current(self, now_us: int) -> Prepared:
        with self._lock:
            # As the watcher's thread left them: a champion that cannot be loaded must not stop scoring.
            (state, model), frame, ready = self._serving(), self.items.frame, self._ready
            if ready is None or not ready.fits(state, model, frame, now_us):
                ready = self._ready = self._prepare(state, model, now_us)
            return ready

    def _prepare(self, state: LiveState, model: EffectModel, now_us: int) -> Prepared:
        catalogue, offered = self.snapshot.catalogue, state.actions[1:]
        frame, values = self.items.at(now_us)
        grid = ActionGrid(model, catalogue, offered, values, self.snapshot.categories, state.vectors)
        wanted = sorted({catalogue[a.item_id].category for a in offered if a.item_id is not None})
        return Prepared(
            state=state,
            model=model,
            frame=frame,
            since_us=now_us,
            until_us=self.items.next_expiry(frame, now_us),
            grid=grid,
            static=floors(state, catalogue, self._min_margin) & self._in_stock(state, now_us),
            audiences=_audiences(state),
            categories=tuple(wanted),
            values=values,
            items=self._keep(values),
            cold=self.cold(offered, now_us),
            unknown=self._unknown(state, model, grid),
            unread=model.encoder.reads_vectors and bool(unread(offered, state.vectors).any()),
        )

    def _unknown(self, state: LiveState, model: EffectModel, grid: ActionGrid) -> Unknown:
        """Once for a model and its candidates: items move too little to ask again each time they do."""
        before = self._ready
        same = before is not None and before.state.candidate_set == state.candidate_set
        if before is not None and same and before.model is model:
            return before.unknown
        return self.unknown_of(model, grid)

    def cold(self, actions: Sequence[Action], now_us: int) -> Mask:
        """`[A]` actions that show an item of which nothing is known, or only what is too old."""
        index, cold = self.snapshot.catalogue.index, self.items.cold(now_us)
        rows = [-1 if action.item_id is None else index[action.item_id] for action in actions]
        return np.array([row >= 0 and bool(cold[row]) for row in rows], dtype=np.bool_)

    def unknown_of(self, model: EffectModel, grid: ActionGrid) -> Unknown:
        """How the effects of the actions of `grid` differ between users, and between their items."""
        return Unknown.of(grid, self._some_users(model))

    def _some_users(self, model: EffectModel) -> UserRows:
        ids = self.snapshot.users.user_ids
        places = np.linspace(0, len(ids) - 1, min(USERS, len(ids))).astype(int)
        return self._frame_of(model).rows([ids[place] for place in places])

    def _keep(self, values: Mapping[str, np.ndarray]) -> str:
        """Content hash under which the item values can be found at a replay."""
        try:
            return self._frames.put(values)
        except OSError as error:
            logger.error("item values are not kept, so these decisions cannot be scored again: %s", error)
            return ""

    def _in_stock(self, state: LiveState, now_us: int) -> Mask:
        """`[A]` False where the item's stock is known to be used up; most shops do not tell it."""
        gone = self.items.present(now_us)["stock"] <= 0.0
        return np.array([row < 0 or not gone[row] for row in state.item_row], dtype=np.bool_)

    def _score(self, prepared: Prepared, requests: Sequence[ScoreRequest]) -> ScoredBatch:
        rows, read = self.read(requests, prepared.categories)
        shape = (len(requests), len(prepared.state.actions))
        value, cost = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        prediction = None
        if shape[1] > 1:
            scores = prepared.grid.score(rows)
            value[:, 1:], prediction = scores.value, scores.prediction
            np.maximum(scores.cost, 0.0, out=cost[:, 1:])
        flags = ("item_snapshot",) if self.items.degraded else ()
        flags = (*flags, "cold_start_item") if prepared.cold.any() else flags
        flags = (*flags, "no_text_vector") if prepared.unread else flags
        return ScoredBatch(
            candidate_set=prepared.state.candidate_set,
            value=value,
            cost=cost,
            admissible=_admitted(prepared, read.known),
            prediction=prediction,
            model_version=prepared.model.version,
            items=prepared.items,
            user_rows=tuple(user_row.pack_all(rows)),
            degraded=tuple((*of_user, *flags) for of_user in read.flags),
            blind=Blind(prepared.unknown, read.strangers, prepared.cold),
        )

    def read(self, requests: Sequence[ScoreRequest], categories: Sequence[str]) -> tuple[UserRows, UserRead]:
        """The rows to score, gaps filled with defaults, and what was read of each user."""
        now_us = np.array([r.at_us for r in requests], dtype=np.int64)
        personal = np.array([r.personal for r in requests], dtype=np.bool_)
        read = self.users.read([r.user_id for r in requests], categories, now_us, personal)
        # How often a user was contacted is personal too; caps, which protect the user, are elsewhere.
        contacts = np.where(personal, [float(r.contacts_7d) for r in requests], 0.0)
        return UserRows(read.filled, read.user_category, contacts), read

    def describe(self, user_id: str) -> list[KnownRow]:
        """What a decision would read of the user now; raises RowsUnavailableError."""
        return self.users.describe(user_id, to_micros(self._clock()))

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """Predictions from the snapshot's feature values: what proposers ask for, off the live path.

        Who has withdrawn consent since the snapshot was made counts as a mean user.
        """
        return self._frame().predict(self._agreeing(user_ids), actions)

    def known_rows(self, user_ids: Sequence[str]) -> UserRows:
        """The snapshot's values of the users; who does not agree counts as a mean user here too."""
        return self._frame().rows(self._agreeing(user_ids))

    def _agreeing(self, user_ids: Sequence[str]) -> list[str]:
        allowed = self.users.allowed(user_ids)
        return [user if agrees else STRANGER for user, agrees in zip(user_ids, allowed, strict=True)]

    def _frame(self) -> FramePredictor:
        return self._frame_of(self.model)

    def _frame_of(self, model: EffectModel) -> FramePredictor:
        snapshot = self.snapshot
        items = GridPredictor(model, snapshot.catalogue, snapshot.item, snapshot.categories, self._vectors)
        return FramePredictor(items, snapshot.users, snapshot.user_category)


def _audiences(state: LiveState) -> tuple[tuple[Audience, Mask], ...]:
    """Each distinct rule that somebody may fail, with the columns `[A]` that it guards."""
    by_rule: dict[tuple[tuple[str, str, float], ...], tuple[Audience, Mask]] = {}
    for column, action in enumerate(state.actions):
        strategy = state.strategies.get(action.strategy_id)
        if strategy is None or not strategy.audience.conditions:
            continue
        empty = np.zeros(len(state.actions), dtype=np.bool_)
        _, columns = by_rule.setdefault(strategy.audience.conditions, (strategy.audience, empty))
        columns[column] = True
    return tuple(by_rule.values())


def _admitted(prepared: Prepared, users: UserTable) -> Mask:
    """`[U, A]` margin floor, stock and audience admit the user."""
    mask = np.repeat(prepared.static[None], len(users.user_ids), axis=0)
    for audience, columns in prepared.audiences:
        mask &= ~columns | audience_mask(audience, users)[:, None]
    return mask
