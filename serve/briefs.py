"""From the brief that came over HTTP to the domain's, with checks that name the field."""

import secrets

from qiance.domain import Brief, Catalogue, Money
from serve.problems import invalid
from serve.schemas import BriefRequest


def new_brief(body: BriefRequest, currency: str, catalogue: Catalogue) -> Brief:
    """A brief with a fresh id; Problem for what the schema alone cannot see."""
    if body.budget.currency != currency:
        raise invalid("budget.currency", body.budget.currency, f"this server works in {currency}")
    if body.ends <= body.starts:
        raise invalid("ends", body.ends.isoformat(), "must be later than starts")
    for item in body.items:
        if item not in catalogue.index:
            raise invalid("items", item, "is not in the catalogue")
    return Brief(
        brief_id=f"brief-{secrets.token_hex(6)}",
        objective=body.objective,
        budget=Money.of(body.budget.amount, currency),
        starts=body.starts,
        ends=body.ends,
        audience=body.audience,
        items=tuple(body.items),
        channels=tuple(body.channels),
        languages=tuple(body.languages),
        max_depth=body.constraints.max_depth,
        min_margin=body.constraints.min_margin,
        n=body.n,
    )
