"""Whether a log of several steps, or slots, says anything about a policy at each of them."""

from __future__ import annotations

from dataclasses import dataclass

from qiance.evaluate.arrays import BoolArray, FloatArray


@dataclass(frozen=True, slots=True)
class Words:
    """How a log's rows and columns are called in a message; model_only: the estimator that needs no overlap,
    if there is one."""

    rows: str = "trajectories"
    column: str = "step"
    model_only: str = ""


def refuse_gap(
    probs: FloatArray, before: FloatArray, weight: FloatArray, inside: BoolArray, words: Words
) -> None:
    """Raise ValueError for the first column in which every row that came with weight loses it.

    All `[n, T]`: probs: the policy's probability of what was logged; before, weight: importance weight
    without and with the column; inside: whether the row still ran. Rows that have ended keep their weight,
    and say nothing of those that go on. What the column brings would count as 0, or as what a model says of
    it, under an interval that knows nothing of either.
    """
    came = inside & (before > 0)
    lost = came.any(axis=0) & ~(inside & (weight > 0)).any(axis=0)
    if not lost.any():
        return
    at = int(lost.argmax())
    row = int(came[:, at].argmax())
    remedies = ["log more exploration", "evaluate a policy closer to the logged one"]
    remedies += [f"keep the first {at} {words.column}{'s' * (at > 1)} only"] if at else []
    remedies += [f"use estimator={words.model_only!r} with a value model"] if words.model_only else []
    raise ValueError(
        f"policy_probs: no overlap at {words.column} {at}: in none of the {int(came[:, at].sum())} "
        f"{words.rows} that count there does the policy take what was logged (row {row}, column {at} is "
        f"{probs[row, at]:g}), so the log says nothing about it there; "
        f"{', '.join(remedies[:-1])}, or {remedies[-1]}"
    )
