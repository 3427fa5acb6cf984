"""Reads the planted and the clean texts, and makes subjects of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qiance.domain import Channel, Creative, Item, Offer, OfferKind
from qiance.guard import Guard, Subject

FOLDER = Path(__file__).resolve().parent
LANGUAGES = ("en", "zh")
MIN_MARGIN = 0.05
ITEMS = {
    "en": Item("i-en", "Ground Coffee, 12 oz", "Coffee", "GROCERY", "National", 799, 500),
    "zh": Item("i-zh", "云南小粒咖啡 250克", "咖啡", "饮品", "自有", 799, 500),
}
_STARTS, _ENDS = datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 9, 30, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Text:
    """One judged text; rule: the id that it breaks, None if it is clean; evasion: how it hides that."""

    id: str
    split: str
    language: str
    rule: str | None
    evasion: str | None
    subject: Subject


def guard() -> Guard:
    """The packaged rules with those of an imaginary shop."""
    return Guard.load(FOLDER / "brand.yaml", min_margin=MIN_MARGIN)


def read(language: str, kind: str, split: str | None = None) -> list[Text]:
    """Texts of a language; kind: `violations` or `clean`; split: only those of it."""
    lines = (FOLDER / f"{language}_{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [_text(json.loads(line)) for line in lines]
    return [text for text in texts if split in (None, text.split)]


def _text(row: Mapping[str, Any]) -> Text:
    words = (row["headline"], row["body"], row["call_to_action"], row["source"])
    creative = Creative(Channel(row["channel"]), row["language"], *words)
    depth = float(row.get("depth", 0.0))
    offer = Offer(OfferKind.PERCENT, depth, int(row.get("threshold", 0))) if depth else Offer()
    item = ITEMS[row["language"]]
    subject = Subject(
        creative,
        offer,
        item.item_id,
        item,
        starts=_STARTS if depth else None,
        ends=_ENDS if depth else None,
        stock=row.get("stock"),
    )
    return Text(row["id"], row["split"], row["language"], row["rule"], row.get("evasion"), subject)
