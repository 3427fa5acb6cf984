"""`qiance propose`: strategies for a segment, from a model of `qiance train proposer`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qiance.cli.predict import trained_model
from qiance.domain import Audience, Brief, Channel, Item, Money, Objective

if TYPE_CHECKING:
    from qiance.proposer.proposer import Proposals, Proposer, Request

_PROPOSED = [Channel.EMAIL, Channel.PUSH, Channel.DISPLAY, Channel.MAILER]


def propose(
    segment: Annotated[str, typer.Argument(help="A segment of the log, or with --features a new one.")],
    price: Annotated[int, typer.Option(min=1, help="Of the item, minor units.")],
    unit_cost: Annotated[int, typer.Option(min=0, help="Of the item, minor units.")],
    budget: Annotated[
        float, typer.Option(help="Per member of the segment, contacts and discounts, minor units.")
    ],
    model: Annotated[
        Path, typer.Option("--model", help="Folder that `qiance train proposer` wrote, or its artifact.")
    ] = Path("proposer"),
    goal: Annotated[Objective, typer.Option(help="What is wanted more of.")] = Objective.MARGIN,
    item: Annotated[str, typer.Option(help="Id of the item.")] = "item",
    features: Annotated[
        Path | None, typer.Option(help="JSON object of the segment's features, if it is not in the log.")
    ] = None,
    channel: Annotated[
        list[Channel] | None, typer.Option(help="Channel that may be used; repeat for several. Default: all.")
    ] = None,
    max_depth: Annotated[float, typer.Option(help="Deepest offer, fraction of the price.")] = 0.4,
    min_margin: Annotated[float, typer.Option(help="Least margin, fraction of the price paid.")] = 0.05,
    starts: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day, UTC. Default: today.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Of the period. Default: as in the log.")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="Proposals, at most.")] = 5,
    seed: Annotated[int, typer.Option(help="The same seed gives the same proposals.")] = 0,
) -> None:
    """Propose offer, channel mix and timing for a segment; prints one JSON object, best first.

    Every proposal keeps the depth limit and the margin floor. `gain`: what the budget is expected to bring by
    it, per member, in units of the goal; `value` and `cost` are of a member reached. `strategy` is a draft
    without words. A gain below 0 means: better leave them alone.
    """
    from qiance.artifacts.proposer import load_proposer
    from qiance.proposer.proposer import Request

    path = trained_model(model)
    proposer = load_proposer(path)
    begin = (starts or datetime.now(UTC)).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=UTC)
    brief = Brief(
        brief_id=f"{segment}-{goal.value}",
        objective=goal,
        budget=Money(max(round(budget), 0)),
        starts=begin,
        ends=begin + timedelta(days=days or proposer.fitted.space.period),
        audience=segment,
        channels=tuple(channel or _PROPOSED),
        max_depth=max_depth,
        min_margin=min_margin,
        n=count,
    )
    product = Item(item, item, "", "", "", price, unit_cost)
    request = Request(_features(proposer, segment, features), product, brief, budget)
    found = proposer.propose(request, seed)
    document = {
        "model": path.name,
        "segment": segment,
        "goal": goal.value,
        "budget": budget,
        "proposals": _rows(found, request, path.name),
    }
    print(json.dumps(document, ensure_ascii=False, indent=1))


def _features(proposer: Proposer, segment: str, file: Path | None) -> Any:
    import numpy as np

    if file is None:
        if segment not in proposer.segments:
            known = ", ".join(list(proposer.segments)[:30])
            raise ValueError(
                f"segment: {segment!r} is not in the log; use one of {known}, or pass --features"
            )
        return proposer.segments[segment]
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        return np.array([float(given[name]) for name in proposer.names])
    except (OSError, ValueError, TypeError, KeyError) as error:
        wanted = ", ".join(proposer.names)
        raise ValueError(f"--features: {file} cannot be used ({error}); numbers wanted: {wanted}") from None


def _rows(found: Proposals, request: Request, version: str) -> list[dict[str, Any]]:
    from qiance.ledger.codec import strategy_to_dict
    from qiance.proposer.vector import strategy_of

    rows = []
    for rank in range(len(found.gain)):
        name, audience = f"{request.brief.brief_id}-{rank + 1}", Audience(str(request.brief.audience))
        strategy = strategy_of(found.vectors, rank, request.item, request.brief, audience, name)
        strategy.provenance["proposer"] = version
        numbers = {
            "gain": found.gain[rank],
            "value": found.expected.value[rank],
            "value_deviation": found.expected.deviation[rank],
            "cost": found.expected.cost[rank],
        }
        rounded = {key: round(float(value), 4) for key, value in numbers.items()}
        rows.append({"rank": rank + 1, **rounded, "strategy": strategy_to_dict(strategy)})
    return rows
