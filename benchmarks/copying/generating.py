"""Words written for products of the shop: do they keep the schema and the facts, and how fast are they.

Every product × channel × offer stands for a brief. `schema_valid` is of the raw samples of the model, before
any check. `fact_violations` are figures outside the slots of what is written at last, and slots without a
fact. `written_by_model` is the share that passed every check; templates wrote the rest. `diversity` is
distinct pairs of neighbouring words among all of the model's words (distinct-2; Li et al. 2016). Speed is of
the same prompts, schema, temperature and longest length through transformers' own `generate` with xgrammar's
logits processor: one prompt at a time, as its example does it, and in padded batches of our size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import torch
from xgrammar.contrib.hf import LogitsProcessor

from benchmarks.harness import Args, alternate, log, median_of
from benchmarks.lint import judge
from benchmarks.linting.texts import LANGUAGES, guard
from benchmarks.targeting.world import catalogue_of
from qiance.domain import Action, Catalogue, Channel, Item, Offer, OfferKind, StrategyKind
from qiance.strategy.content import MAX_NEW_TOKENS, TEMPERATURE, write_content
from qiance.strategy.content_ports import ContentRequest, Generated, Written
from qiance.strategy.prompts import AVOID, Prompt, copy_schema
from qiance.strategy.samples import prompt_of
from qiance.strategy.slots import SLOT, bind, facts_for
from serve.generator.engine import MAX_BATCH, TransformersEngine

CACHE = Path(".cache")
ENDS = datetime(2026, 10, 1, tzinfo=UTC)
SMOKE = Catalogue(
    (
        Item("i0", "Ground Coffee, 12 oz", "Coffee", "GROCERY", "National", 799, 500),
        Item("i1", "Toilet Paper", "Paper Towels", "GROCERY", "Private", 1_099, 700),
    )
)
CHANNELS = (Channel.EMAIL, Channel.DISPLAY, Channel.MAILER)
OFFERS = (Offer(), Offer(OfferKind.PERCENT, 0.2), Offer(OfferKind.PERCENT, 0.1, threshold=3_000))
NO_LLAMACPP = "llama-cpp-python is on PyPI as source only; it is not compiled here"


@dataclass
class Recorded:
    """The engine, with what it answered kept."""

    engine: TransformersEngine
    answers: list[tuple[Mapping[str, Any], Generated]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate_json(
        self, prompts: Sequence[Prompt], schema: Mapping[str, Any], **more: Any
    ) -> list[Generated]:
        """See `TransformersEngine`."""
        found = self.engine.generate_json(prompts, schema, **more)
        self.answers += [(schema, answer) for answer in found]
        return found


def requests_of(catalogue: Catalogue, count: int) -> list[ContentRequest]:
    """`count` briefs, by turns over products, channels and offers."""
    items, asked = list(catalogue), []
    for number in range(count):
        channel, offer = CHANNELS[number % 3], OFFERS[number // 3 % 3]
        item = items[number * 7_919 % len(items)]
        asked.append(ContentRequest(f"brief-{number}", item, offer, channel, "en"))
    return asked


def schema_valid(answers: Sequence[tuple[Mapping[str, Any], Generated]]) -> float:
    """Share of raw answers that are a JSON object of their schema."""
    good = 0
    for schema, answer in answers:
        try:
            jsonschema.validate(answer.data, schema)
            good += 1
        except jsonschema.ValidationError as error:
            log(f"  not of its schema: {answer.text!r} ({answer.error or error.message})")
    return good / len(answers)


def violates_facts(request: ContentRequest, written: Written) -> bool:
    """Whether a figure stands outside the slots, or a slot has no fact."""
    creative = written.creative
    action = Action(
        "a",
        "s",
        StrategyKind.PROMOTION,
        request.item.item_id,
        request.offer,
        creative,
        request.channel,
        0,
    )
    try:
        bind(creative, facts_for(action, request.item, ENDS, "USD"), request.language)
    except ValueError:
        return True
    return False


def distinct_pairs(written: Sequence[Written]) -> float | None:
    """Distinct pairs of neighbouring words over all of them, in what the model wrote; None without any."""
    pairs: list[tuple[str, str]] = []
    for each in written:
        if each.creative.source == "llm":
            own = SLOT.sub(" ", f"{each.creative.headline} . {each.creative.body}").lower()
            pairs += pairwise(re.findall(r"[a-z'-]+", own))
    return len(set(pairs)) / len(pairs) if pairs else None


def linted(most: int | None) -> dict[str, float]:
    """Of the lint on its test texts, as `benchmarks.lint` has them."""
    lint = guard()
    parts = [judge(lint, language, "test", most) for language in LANGUAGES]
    alarms = sum(round(part["lint_false_alarms"] * part["clean"]) for part in parts)
    return {
        "lint_escapes": sum(part["lint_escapes"] for part in parts),
        "lint_false_alarms": alarms / sum(part["clean"] for part in parts),
    }


def speeds(engine: TransformersEngine, requests: Sequence[ContentRequest], args: Args) -> dict[str, float]:
    """Tokens a second: ours, and of `generate` one by one and in batches."""
    prompts = [prompt_of(request, engine) for request in requests]
    schema, count = copy_schema("en"), dict[str, int]()
    compiled = engine._compile(schema)

    def ours() -> None:
        answers = engine.generate_json(
            prompts,
            schema,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=TEMPERATURE,
            seed=args.seed,
            avoid=AVOID["en"],
        )
        count["ours"] = sum(answer.tokens for answer in answers)

    def peer(name: str, size: int) -> Callable[[], None]:
        def run() -> None:
            batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
            count[name] = sum(_generate(engine, batch, compiled) for batch in batches)

        return run

    most = MAX_BATCH[engine._model.device.type]
    calls = {
        "ours": ours,
        "generate": peer("generate", 1),
        "generate_batched": peer("generate_batched", most),
    }
    times = alternate(calls, args.pick(smoke=1, quick=2, full=3))
    return {name: count[name] / median_of(seconds) for name, seconds in times.items()}


def _generate(engine: TransformersEngine, prompts: Sequence[Prompt], compiled: Any) -> int:
    """Tokens that transformers' own loop writes for a batch."""
    tokenizer, model = engine._tokenizer, engine._model
    rows = [engine._encode(prompt) for prompt in prompts]
    longest, pad = max(map(len, rows)), tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            pad_token_id=pad,
            logits_processor=[LogitsProcessor(compiled)],
        )
    ends = {tokenizer.eos_token_id, pad}
    return sum(sum(token not in ends for token in row) for row in out[:, longest:].tolist())


@dataclass(frozen=True)
class Writing:
    """What was measured, and the briefs with the words that they got."""

    figures: dict[str, Any]
    peers: dict[str, Any]
    protocol: dict[str, Any]
    asked: list[ContentRequest]
    written: list[Written]
    samples: int
    engine: TransformersEngine


def measure_writing(args: Args) -> Writing:
    """Words for briefs by the embedded model, and how fast they come."""
    torch.manual_seed(args.seed)
    size = args.pick(smoke=2, quick=24, full=200)
    catalogue = args.pick(smoke=lambda: SMOKE, quick=catalogue_of, full=catalogue_of)()
    engine, lint = TransformersEngine.load("embedded", CACHE, threads=1), guard()
    asked, recorded = requests_of(catalogue, size), Recorded(engine)
    log(f"writing words for {size} briefs")
    samples = args.pick(smoke=1, quick=3, full=3)
    written = write_content(asked, recorded, lint, samples=samples, seed=args.seed)
    found = speeds(engine, asked[: args.pick(smoke=2, quick=8, full=24)], args)
    figures = {
        "schema_valid": schema_valid(recorded.answers),
        "fact_violations": sum(violates_facts(r, w) for r, w in zip(asked, written, strict=True)),
        "written_by_model": sum(w.creative.source == "llm" for w in written) / size,
        **linted(args.pick(smoke=20, quick=None, full=None)),
        "diversity": distinct_pairs(written),
        "tokens_per_s": found["ours"],
        "vs_generate": found["ours"] / found["generate"],
        "vs_generate_batched": found["ours"] / found["generate_batched"],
        "vs_llamacpp": None,
    }
    peers = {name: {"tokens_per_s": found[name]} for name in ("generate", "generate_batched")}
    protocol = {
        "model": engine.name,
        "briefs": size,
        "samples": samples,
        "xgrammar": metadata.version("xgrammar"),
    }
    return Writing(figures, peers, protocol, asked, written, samples, engine)
