"""What the routes about creatives take and give."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from qiance.domain import Channel, Creative, Offer, OfferKind
from qiance.guard import Subject
from qiance.ledger import BankEntry
from serve.schemas import MAX_MINOR, Identifier, Moment, Strict, carrying, creative_out

MAX_TEXT = 2_000
Carrying = Annotated[Channel, AfterValidator(carrying)]
Words = Annotated[str, Field(max_length=MAX_TEXT)]


class OfferIn(Strict):
    """The price reduction that the words speak of."""

    kind: OfferKind = OfferKind.NONE
    depth: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    threshold: int = Field(0, ge=0, le=MAX_MINOR, strict=True, description="Least basket, minor units")

    @model_validator(mode="after")
    def _fits(self) -> "OfferIn":
        if (self.kind is OfferKind.NONE) != (self.depth == 0.0):
            raise ValueError(f"depth {self.depth} does not fit kind {self.kind.value!r}")
        return self


class CreativeRequest(Strict):
    """Words that a person has written, with what they are about; facts are slots such as `{price}`."""

    channel: Carrying
    language: Literal["en", "zh"]
    headline: Words
    body: Words
    call_to_action: Words
    segment: Identifier = Field("everybody", description="Name of the audience that they are for")
    item_id: Identifier | None = None
    offer: OfferIn = OfferIn()
    starts: Moment | None = None
    ends: Moment | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "CreativeRequest":
        if self.starts is not None and self.ends is not None and self.starts >= self.ends:
            raise ValueError("ends is not after starts")
        return self

    def subject(self) -> Subject:
        """For the guard; the catalogue's row is not known here."""
        words = Creative(self.channel, self.language, self.headline, self.body, self.call_to_action, "person")
        offer = Offer(self.offer.kind, self.offer.depth, self.offer.threshold)
        return Subject(words, offer, self.item_id, segment=self.segment, starts=self.starts, ends=self.ends)


class MoveRequest(Strict):
    """Why words are approved or retired; it goes to the audit log."""

    reason: Annotated[str, Field(min_length=1, max_length=200)]


class CreativeEntry(BaseModel):
    """Words in the bank, with what the lint last said."""

    creative_id: str
    version: int = Field(description="Counts within segment, channel, language and item")
    segment: str
    item_id: str | None
    creative: dict[str, Any]
    offer: dict[str, Any]
    starts: datetime | None
    ends: datetime | None
    state: str
    by: str
    created_at: datetime
    changed_at: datetime
    verdict: str
    rules: str
    findings: list[dict[str, Any]]


def entry_out(entry: BankEntry) -> CreativeEntry:
    """Ledger → HTTP."""
    subject = entry.subject
    offer = {"kind": subject.offer.kind.value, "depth": subject.offer.depth}
    return CreativeEntry(
        creative_id=entry.creative_id,
        version=entry.version,
        segment=subject.segment,
        item_id=subject.item_id,
        creative=creative_out(subject.creative) or {},
        offer={**offer, "threshold": subject.offer.threshold},
        starts=subject.starts,
        ends=subject.ends,
        state=entry.state.value,
        by=entry.by,
        created_at=entry.created_at,
        changed_at=entry.changed_at,
        verdict=entry.verdict.value,
        rules=entry.rules,
        findings=[dict(finding) for finding in entry.findings],
    )
