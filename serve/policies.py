"""Policies over HTTP: what one would have earned, and making it live; off the path of decisions."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, FastAPI, Path

from qiance.launch import Evaluation, Launched, PolicyDesk, UnknownPolicyError
from qiance.ledger import GateClosedError, Ledger, LedgerUnavailableError, Override, Scope
from serve.policy_schemas import (
    EvaluatePolicyRequest,
    EvaluatePolicyResponse,
    PolicyVersion,
    PromotePolicyRequest,
    PromotePolicyResponse,
    evaluation_out,
)
from serve.problems import Problem
from serve.strict_json import StrictRoute

logger = logging.getLogger(__name__)
RETRY_AFTER_S = 5
LOOPBACK = "loopback"  # who calls without a key: nobody by name


class OtherModelError(ValueError):
    """The policy decides by another effect model than the one that serves."""


class Judges(Protocol):
    """The policy desk, wherever it runs."""

    def evaluate(self, version: str) -> Awaitable[Evaluation]:
        """See `PolicyJudge.evaluate`."""
        ...

    def promote(self, version: str, by: str, override: Override | None) -> Awaitable[Launched]:
        """See `PolicyJudge.promote`."""
        ...


class PolicyJudge:
    """A policy desk with a deadline; a plain class, called in a thread.

    timeout_s: from when the question came, also while others were worked on.
    """

    def __init__(self, desk: PolicyDesk, ledger: Ledger, timeout_s: float) -> None:
        self._desk, self._ledger, self._timeout_s = desk, ledger, timeout_s

    def evaluate(self, version: str, asked_at: float) -> Evaluation:
        """What the policy would have earned; TimeoutError past the deadline. asked_at: monotonic."""
        return self._desk.evaluate(version, self._deadline(asked_at))

    def promote(self, version: str, by: str, override: Override | None, asked_at: float) -> Launched:
        """Makes the policy live if the gate opens or is overridden; OtherModelError where it names a model
        that does not serve: the registry has to follow, and it is not in reach here."""
        model, serving = self._desk.plan(version).effect_model, self._ledger.versions().model
        if model != serving:
            raise OtherModelError(
                f"policy {version!r} decides by the effect model {model!r}, and {serving!r} serves; make "
                f"both live with `qiance policies promote {version}`"
            )
        return self._desk.promote(version, by, override, self._deadline(asked_at))

    def _deadline(self, asked_at: float) -> Callable[[float, str], None]:
        def tick(done: float, what: str) -> None:
            if time.monotonic() - asked_at > self._timeout_s:
                raise TimeoutError(f"gave up after {self._timeout_s:g} s, {done:.0%} done")

        return tick


class PolicyService:
    """Answers about policies, errors as problems."""

    def __init__(self, judges: Judges) -> None:
        self._judges = judges

    async def evaluate(self, body: EvaluatePolicyRequest) -> EvaluatePolicyResponse:
        """What a policy would have earned against the live one."""
        return evaluation_out(await _asked(self._judges.evaluate(body.policy_version)))

    async def promote(self, version: str, body: PromotePolicyRequest, by: str) -> PromotePolicyResponse:
        """Makes a policy live; 409 where the gate is closed and not overridden."""
        override = _override(body, by) if body.override else None
        done: Launched = await _asked(self._judges.promote(version, by, override))
        if done.versions is None:
            why = "" if done.evaluation is None else done.evaluation.verdict.reason
            raise Problem(409, f"version: the gate is closed: {why}")
        return PromotePolicyResponse(
            policy_version=version,
            overridden=done.overridden,
            evaluation=None if done.evaluation is None else evaluation_out(done.evaluation),
        )


def _override(body: PromotePolicyRequest, by: str) -> Override:
    if by == LOOPBACK:
        raise Problem(403, "override: needs an API key, whose name stands in the audit log")
    try:
        return Override(by, body.reason)
    except ValueError as error:
        detail = str(error).partition(": ")[2]
        raise Problem(
            422, f"reason: {detail}", [{"field": "reason", "value": "", "detail": detail}]
        ) from None


async def _asked(answer: Awaitable[Any]) -> Any:
    """The answer, or why there is none."""
    try:
        return await answer
    except UnknownPolicyError as error:
        raise Problem(404, str(error)) from None
    except (OtherModelError, GateClosedError) as error:
        raise Problem(409, str(error)) from None
    except LedgerUnavailableError:
        raise
    except TimeoutError as error:
        detail = f"evaluation: {error}; try again, or use fewer decisions (gate.max_rows, gate.days)"
        raise Problem(503, detail, retry_after=RETRY_AFTER_S) from None
    except ValueError as error:
        field = str(error).split(":", 1)[0]
        raise Problem(422, str(error), [{"field": field, "value": "", "detail": str(error)}]) from error
    except Exception as error:  # whatever failed behind the handle, a later try may do
        logger.error("a policy cannot be judged: %r", error)
        raise Problem(503, "evaluation: does not answer; try again", retry_after=RETRY_AFTER_S) from error


def add_policies(
    app: FastAPI, policies_of: Callable[[], PolicyService], allow: Callable[[Scope], Any]
) -> None:
    """Adds the routes to `app`. allow: the dependency that checks a key's scope and gives its name."""
    router = APIRouter(route_class=StrictRoute, tags=["policies"])

    @router.post("/v1/policies/evaluate", dependencies=[allow(Scope.READ)])
    async def evaluate(body: EvaluatePolicyRequest) -> EvaluatePolicyResponse:
        """What a policy would have earned against the live one, and what the gate says; changes nothing."""
        return await policies_of().evaluate(body)

    @router.post("/v1/policies/{version}:promote")
    async def promote(
        version: Annotated[PolicyVersion, Path(description="Version of the policy")],
        body: PromotePolicyRequest,
        by: Annotated[str, allow(Scope.APPROVE)],
    ) -> PromotePolicyResponse:
        """Make a policy live if it is shown to be better in every campaign, or override the gate by name."""
        return await policies_of().promote(version, body, by)

    app.include_router(router)
