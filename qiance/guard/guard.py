"""The lint: every rule over one subject, and blocked whenever something is not as it should be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, Self

from qiance.domain import Catalogue, Strategy
from qiance.guard.checks import CHECKS
from qiance.guard.results import Finding, Linted, Result, Severity, content_of, digest, sealed
from qiance.guard.rules import LOCALES, RuleSet, load_rules
from qiance.guard.scene import Scene
from qiance.guard.subject import Subject, subjects_of

logger = logging.getLogger(__name__)
CLOSED: Final = "guard-closed"
NO_RULES: Final = "none"


class Guard:
    """Lints words under one rule set, one currency and one margin floor. Never raises for a text: it blocks.

    min_margin: least margin, fraction of the discounted price.
    """

    def __init__(
        self, rules: RuleSet | None, *, currency: str = "USD", min_margin: float = 0.0, closed: str = ""
    ) -> None:
        self.rules, self.currency, self.min_margin = rules, currency, min_margin
        self._closed = closed or ("" if rules is not None else "there are no rules")

    @classmethod
    def load(cls, own: Path | None = None, *, currency: str = "USD", min_margin: float = 0.0) -> Self:
        """A guard with the packaged rules and the shop's own file.

        If they cannot be read the guard is closed: it blocks every text, and its findings say why.
        """
        try:
            return cls(load_rules(own), currency=currency, min_margin=min_margin)
        except Exception as error:  # whatever is wrong with the rules, nothing passes without them
            logger.error("the rules cannot be read, so every text is blocked: %s", error)
            return cls(None, currency=currency, min_margin=min_margin, closed=str(error) or repr(error))

    @property
    def version(self) -> str:
        """Version of the rule set; `none` if the guard is closed."""
        return NO_RULES if self.rules is None else self.rules.version

    @property
    def closed(self) -> str:
        """Why nothing passes; empty if the rules were read."""
        return self._closed

    def checked(self, subject: Subject) -> str:
        """Digest of everything that a result hangs on: rules, money settings, words and facts."""
        return digest([self.version, self.currency, self.min_margin, *content_of(subject)])

    def lint(self, subject: Subject) -> Linted:
        """Every finding about `subject`, blocking ones first."""
        try:
            findings = self._findings(subject)
        except Exception as error:  # a text that breaks a check may be made to do so
            logger.exception("a check failed, the text is blocked")
            findings = [_closed(f"a check failed: {type(error).__name__}: {error}")]
        order = list(Severity)
        findings.sort(key=lambda finding: order.index(finding.severity))
        return sealed(subject, Result(tuple(findings), self.version), self.checked(subject))

    def lint_strategy(self, strategy: Strategy, catalogue: Catalogue | None) -> list[Linted]:
        """The words of every action of `strategy`, in order."""
        return [self.lint(subject) for subject in subjects_of(strategy, catalogue).values()]

    def _findings(self, subject: Subject) -> list[Finding]:
        if self.rules is None or self._closed:
            return [_closed(self._closed)]
        creative = subject.creative
        if creative.language not in LOCALES:
            return [_closed(f"language {creative.language!r} has no rules; use one of {', '.join(LOCALES)}")]
        if creative.channel not in self.rules.channels:
            return [
                _closed(
                    f"channel {creative.channel!r} has no limits; use one of {', '.join(self.rules.channels)}"
                )
            ]
        if subject.item_id is not None and subject.item is None:
            return [
                _closed(f"item {subject.item_id!r} is not in the catalogue, so its facts cannot be checked")
            ]
        scene = Scene(subject, self.rules, self.currency, self.min_margin)
        return [finding for rule in self.rules.rules for finding in CHECKS[rule.kind](rule, scene)]


def _closed(why: str) -> Finding:
    return Finding(
        CLOSED,
        Severity.BLOCK,
        "the lint fails closed",
        why,
        "mend what is named, then lint again",
        "guard",
        0,
        0,
        "",
    )
