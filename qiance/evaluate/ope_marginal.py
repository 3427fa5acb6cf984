"""Marginalised importance weighting, for action sets too large for the plain kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.bandit_log import BanditLog, checked_policy


def marginal_log(
    log: BanditLog,
    policy_probs: NDArray[Any],
    logging_probs: NDArray[Any],
    embedding: ArrayLike,
) -> tuple[BanditLog, NDArray[np.float64]]:
    """The log and the policy with actions replaced by what they have in common: (log, `[n, E]`
    probabilities).

    policy_probs, logging_probs: `[n, n_actions]`, of the policy and of the one that made the log.
    embedding: `[n_actions]` or `[n_actions, d]`, what is known of each action (category, price band, cluster
        of a continuous embedding); actions with the same values are one class.

    Estimating the second of the log by the first is marginalised importance weighting (MIPS), with weights
    Σ_{a in e} π(a|x) / Σ_{a in e} π₀(a|x): their spread is that of the classes, not of the actions. It is
    unbiased where the reward hangs on the action through its class only, and every estimator, interval and
    diagnostic of `qiance.evaluate.ope` then holds for it. Otherwise it is biased by what differs within a
    class, which the log does not show: compare with the plain estimate.
    Source: Saito & Joachims, ICML (2022), 19089-19122.
    Arrays are checked as by `estimate`; ValueError also where logging_probs contradict the logged
    propensities.
    """
    probs = checked_policy("policy_probs", policy_probs, log)
    logging = checked_policy("logging_probs", logging_probs, log)
    values = np.asarray(embedding)
    classes = np.unique(values.reshape(len(values), -1), axis=0, return_inverse=True)[1].reshape(-1)
    for name, matrix in (("policy_probs", probs), ("logging_probs", logging)):
        if matrix.shape[1] != classes.size:
            raise ValueError(f"{name}: has {matrix.shape[1]} columns; must have {classes.size}, as embedding")
    _refuse_contradiction(log, logging)
    member = (classes[:, None] == np.arange(int(classes.max()) + 1)).astype(np.float64)
    marginal, logged = probs @ member, logging @ member
    taken = classes[log.action]
    propensity = logged[np.arange(len(log)), taken].clip(max=1.0)
    found = BanditLog(taken, log.reward, propensity, log.context, log.position, log.cluster)
    return found, marginal / marginal.sum(axis=1, keepdims=True)


def _refuse_contradiction(log: BanditLog, logging: NDArray[Any]) -> None:
    said = logging[np.arange(len(log)), log.action].astype(np.float64)
    off = np.abs(said - log.propensity) > 1e-3 * log.propensity
    if off.any():
        row = int(off.argmax())
        raise ValueError(
            f"logging_probs: row {row}, column {log.action[row]} is {said[row]:g}, but its logged propensity "
            f"is {log.propensity[row]:g}; pass the probabilities with which the log was made"
        )
