"""The text lint on planted violations and clean texts: what escapes, what is blocked for nothing, how fast.

An escape is a planted violation that is not blocked (for a rule that only warns: not found). A false alarm is
a clean text that is blocked. `test` was written before the rules; `fresh` after they were finished, to tell
how far they reach beyond the words that their author had in mind: no rule was changed for it. The figures of
the whole are those of `test`; `fresh` stands beside them. `dev` is for changing rules, and not judged.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import emit, log, median_of, parse
from benchmarks.linting.texts import LANGUAGES, Text, guard, read
from qiance.guard import Guard, Result, Severity
from qiance.guard.normalise import views
from qiance.guard.scene import forget

JUDGED = ("test", "fresh")


def found(text: Text, result: Result) -> bool:
    """Whether the planted violation was caught: blocked, or named by a rule that only warns."""
    warned = any(f.rule == text.rule and f.severity is Severity.WARN for f in result.findings)
    return result.blocked or warned


def judge(lint: Guard, language: str, split: str, most: int | None) -> dict[str, Any]:
    """Counts and rates of one language and split."""
    planted = read(language, "violations", split)[:most]
    clean = read(language, "clean", split)[:most]
    results = [(text, lint.lint(text.subject).result) for text in planted]
    escaped = [text for text, result in results if not found(text, result)]
    named = [any(f.rule == text.rule for f in result.findings) for text, result in results]
    alarms = [text for text in clean if lint.lint(text.subject).result.blocked]
    for text in escaped:
        log(f"    escaped: {text.id} ({text.rule})")
    for text in alarms:
        log(f"    false alarm: {text.id}")
    by_rule = Counter(text.rule for text in planted)
    return {
        "violations": len(planted),
        "lint_escapes": len(escaped),
        "rule_named": sum(named) / len(named) if named else None,
        "evasions": sum(text.evasion is not None for text in planted),
        "clean": len(clean),
        "lint_false_alarms": len(alarms) / len(clean) if clean else None,
        "by_rule": {rule: by_rule[rule] for rule in sorted(by_rule, key=str)},
        "escapes_by_rule": dict(Counter(str(text.rule) for text in escaped)),
    }


def speed(lint: Guard, most: int | None, repeats: int) -> float:
    """Texts a second, nothing remembered from one pass to the next: the median of the passes."""
    texts = [
        t for lang in LANGUAGES for kind in ("violations", "clean") for t in read(lang, kind, "test")[:most]
    ]
    times = []
    for _ in range(repeats):
        forget()
        views.cache_clear()
        started = time.perf_counter()
        for text in texts:
            lint.lint(text.subject)
        times.append(time.perf_counter() - started)
    return len(texts) / median_of(times)


def main(argv: Sequence[str] | None = None) -> None:
    """Judge every language and split, and print the result."""
    args = parse(argv, "The text lint on planted violations and clean texts, in English and Chinese.")
    most = args.pick(smoke=40, quick=None, full=None)
    lint = guard()
    if lint.closed:
        raise ValueError(lint.closed)
    figures: dict[str, Any] = {}
    for split in JUDGED:
        for language in LANGUAGES:
            log(f"==> {language}, {split}")
            figures.setdefault(split, {})[language] = judge(lint, language, split, most)
    for prefix, split in (("", "test"), ("fresh_", "fresh")):
        parts = list(figures[split].values())
        figures[f"{prefix}lint_escapes"] = sum(part["lint_escapes"] for part in parts)
        alarms = sum(round(part["lint_false_alarms"] * part["clean"]) for part in parts)
        figures[f"{prefix}lint_false_alarms"] = alarms / sum(part["clean"] for part in parts)
    fresh = figures["fresh"].values()
    figures["fresh_escape_rate"] = figures["fresh_lint_escapes"] / sum(part["violations"] for part in fresh)
    figures["texts_per_s"] = speed(lint, most, args.pick(smoke=1, quick=3, full=3))
    protocol = {"rules": lint.version, "splits": list(JUDGED), "texts": "benchmarks/linting/*.jsonl"}
    emit("lint", args, figures, {}, protocol)


if __name__ == "__main__":
    main()
