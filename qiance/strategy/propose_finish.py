"""From chosen candidates to strategies: drafts for the writer, final effects, reasons and ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from qiance.decide.predictor import discount_of
from qiance.domain import Action, Effect, EffectPredictor, GridPrediction, Interval, Objective, Strategy
from qiance.strategy.promotion import Schedule
from qiance.strategy.propose_candidate import CONFIDENCE, Candidate, Sold, units_of
from qiance.strategy.propose_grid import EFFECT_STAGE, MAX_USERS, checked_prediction, objective_draws
from qiance.strategy.propose_ports import ContentWriter, Draft, WrittenText
from qiance.strategy.propose_request import Request
from qiance.strategy.propose_words import effect_words, readable_id, stock_words, title_words
from qiance.strategy.segments import reader_words, segment_words
from qiance.strategy.timing import BASKETS, share_reached

MAX_ACTIONS = 2


@dataclass(frozen=True)
class Plan:
    """A candidate with its id and the drafts of its actions, one per channel and language."""

    candidate: Candidate
    strategy_id: str
    drafts: tuple[Draft, ...]


def plan(request: Request, candidate: Candidate) -> Plan:
    """Name the candidate and lay out its at most two actions."""
    languages = tuple(dict.fromkeys(request.brief.languages))
    content = [request.brief.brief_id, candidate.content, languages]
    strategy_id = readable_id(candidate.kind, candidate.item.title, content)
    places = [(channel, language) for channel in candidate.channels for language in languages]
    drafts = tuple(
        Draft(
            key=f"{strategy_id}:{number}",
            item=candidate.item,
            offer=candidate.offer,
            channel=channel,
            language=language,
            segment=segment_words(candidate.audience, language),
            readers=reader_words(candidate.audience, language),
            objective=request.brief.objective,
        )
        for number, (channel, language) in enumerate(places[:MAX_ACTIONS])
    )
    return Plan(candidate, strategy_id, drafts)


def write_texts(plans: Sequence[Plan], writer: ContentWriter) -> dict[str, WrittenText]:
    """The words of every draft by its key, in one call.

    Raises ValueError when the writer answers for another number, channel or language.
    """
    drafts = [draft for each in plans for draft in each.drafts]
    texts = writer.write(drafts)
    if len(texts) != len(drafts):
        raise ValueError(f"writer: returned {len(texts)} texts for {len(drafts)} drafts")
    for draft, text in zip(drafts, texts, strict=True):
        got, wanted = (text.creative.channel, text.creative.language), (draft.channel, draft.language)
        if got != wanted:
            raise ValueError(f"writer: draft {draft.key!r} asked for {wanted} and got {got}")
    return {draft.key: text for draft, text in zip(drafts, texts, strict=True)}


def finish(
    request: Request, each: Plan, texts: dict[str, WrittenText], predictor: EffectPredictor
) -> Strategy | None:
    """The strategy with its words, and the effect predicted with exactly those words.

    None for a promotion that with these words would sell more than what is on hand.

    The effect is that of its best action, averaged over at most 600 users of the audience; the
    interval is the spread of the predictor's heads for that mean.
    """
    candidate, brief = each.candidate, request.brief
    written = [texts[draft.key] for draft in each.drafts]
    actions = tuple(_action(request, each, draft, texts[draft.key]) for draft in each.drafts)
    members = request.matching(candidate.audience)
    rows = request.sample(members, MAX_USERS, EFFECT_STAGE)
    prediction = checked_prediction(predictor, [request.users.user_ids[row] for row in rows], actions)
    best, effect = best_effect(prediction, brief.objective)
    schedule, in_stock, provenance = _schedule(request, candidate), list[str](), dict(candidate.provenance)
    if (sold := candidate.sold) is not None:
        units = _units(request, sold, schedule, rows, int(members.size), actions, prediction)
        if sold.on_hand is not None and units.high > sold.on_hand:
            return None
        in_stock.append(stock_words(units, sold.on_hand))
        provenance["stock"] = "unknown" if sold.on_hand is None else f"{sold.on_hand:g} units on hand"
    return Strategy(
        strategy_id=each.strategy_id,
        brief_id=brief.brief_id,
        kind=candidate.kind,
        title=_title(candidate),
        audience=candidate.audience,
        actions=actions,
        starts=schedule.starts,
        ends=schedule.ends,
        effect=effect,
        reach=int(members.size),
        reasons=(
            *candidate.reasons,
            effect_words(effect, brief.budget.currency, CONFIDENCE, int(members.size)),
            *_best_reason(actions, best),
            *_doubt(effect),
            schedule.reason,
            *in_stock,
            *dict.fromkeys(reason for text in written for reason in text.reasons),
        ),
        provenance={
            **provenance,
            "creative": ", ".join(dict.fromkeys(text.engine for text in written)),
            "effect": (
                f"effect model, {prediction.click.shape[2]} heads, {rows.size} of {members.size} users"
            ),
        },
    )


def best_effect(prediction: GridPrediction, objective: Objective) -> tuple[int, Effect]:
    """The action of highest mean objective, the first of equals, and its effect."""
    means = objective_draws(prediction, objective).mean(axis=(0, 2), dtype=np.float64)
    best = int(np.argmax(means))
    return best, prediction.summarise(best, confidence=CONFIDENCE)


def _action(request: Request, each: Plan, draft: Draft, text: WrittenText) -> Action:
    return Action(
        action_id=draft.key,
        strategy_id=each.strategy_id,
        kind=each.candidate.kind,
        item_id=draft.item.item_id,
        offer=draft.offer,
        creative=text.creative,
        channel=draft.channel,
        contact_cost=request.contact_cost[draft.channel],
    )


def _schedule(request: Request, candidate: Candidate) -> Schedule:
    brief = request.brief
    whole = Schedule(brief.starts, brief.ends, "Runs for the whole period of the brief.")
    return candidate.schedule or whole


def _units(
    request: Request,
    sold: Sold,
    schedule: Schedule,
    rows: NDArray[np.int64],
    members: int,
    actions: Sequence[Action],
    prediction: GridPrediction,
) -> Interval:
    """Units that the promotion sells with its words, by the action that sells most."""
    baskets = request.users.columns.get(BASKETS)
    days = np.array([(schedule.ends - schedule.starts) / timedelta(days=1)])
    own, period = None if baskets is None else baskets[rows], request.windows[0].days
    reached = members * float(share_reached(own, days, period)[0])
    found = []
    for place, action in enumerate(actions):
        rate = prediction.summarise(place, confidence=CONFIDENCE).cvr
        cost = action.contact_cost + discount_of(action, request.catalogue) * rate.value
        count = reached if cost == 0 else min(reached, request.brief.budget.minor / cost)
        found.append(units_of(rate, count, sold.demand))
    return max(found, key=lambda units: units.high)


def _title(candidate: Candidate) -> str:
    channels = " and ".join(channel.value for channel in candidate.channels)
    return title_words(
        candidate.kind, candidate.item.title, candidate.offer, candidate.audience.name, channels
    )


def _best_reason(actions: Sequence[Action], best: int) -> tuple[str, ...]:
    """Which of several actions the effect is for."""
    if len(actions) < 2:
        return ()
    action = actions[best]
    language = action.creative.language if action.creative is not None else ""
    return (f"The effect is that of its best action, {action.channel.value} in {language}.",)


def _doubt(effect: Effect) -> tuple[str, ...]:
    """A warning when the prediction does not say that the strategy pays."""
    if effect.uplift.value <= 0:
        return ("It is predicted not to pay for itself: approve it for its clicks or sales, or to learn.",)
    if effect.uplift.low <= 0:
        return ("The interval of its margin over doing nothing includes zero.",)
    return ()
