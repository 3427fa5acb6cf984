"""How likely given answers are to a language model: what it would say is measured without its saying it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

BATCH = 8  # rows at a time: a large vocabulary makes 5 MB of logits a row


@torch.inference_mode()
def log_likelihoods(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    cancelled: Callable[[], bool],
) -> list[float]:
    """Natural log probability of each answer's tokens after its prompt's, summed.

    prompts: token ids; what all begin with is read once. cancelled: asked before each batch; the rest is NaN.
    """
    if not prompts:
        return []
    shared = common_prefix(prompts)
    head = read(model, prompts[0][:shared]) if shared else None
    tails = [prompt[shared:] for prompt in prompts]
    found: list[float] = []
    for start in range(0, len(prompts), BATCH):
        if cancelled():
            return found + [math.nan] * (len(prompts) - start)
        part = slice(start, start + BATCH)
        found += _of_batch(model, head, shared, tails[part], answers[part])
    return found


@torch.inference_mode()
def read(model: Any, ids: Sequence[int]) -> DynamicCache:
    """Keys and values of `ids`, of a batch of one."""
    cache = DynamicCache(config=model.config)
    model(input_ids=_tensor(model, [ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def begun(model: Any, head: DynamicCache | None, count: int) -> DynamicCache:
    """A cache of `count` rows that have read what `head` has; None: nothing."""
    if head is None:
        return DynamicCache(config=model.config)
    cache = copy.deepcopy(head)
    cache.batch_repeat_interleave(count)
    return cache


def _of_batch(
    model: Any,
    head: DynamicCache | None,
    shared: int,
    tails: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> list[float]:
    rows = [[*tail, *answer] for tail, answer in zip(tails, answers, strict=True)]
    longest, most = max(map(len, rows)), max(map(len, answers))
    cache = begun(model, head, len(rows))
    # Padded on the left, so that answers end together and only their places need logits.
    ids = _tensor(model, [[0] * (longest - len(row)) + row for row in rows])
    seen = [[1] * shared + [0] * (longest - len(row)) + [1] * len(row) for row in rows]
    mask = _tensor(model, seen)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, shared:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=most + 1,
    )
    scores = torch.log_softmax(out.logits[:, :-1].float(), dim=-1)
    said = scores.gather(2, ids[:, -most:, None])[:, :, 0]
    return [float(row[most - len(answer) :].sum()) for row, answer in zip(said, answers, strict=True)]


def _tensor(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(rows, device=model.device)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all prompts share, leaving each at least one of its own."""
    most = min(len(p) for p in prompts) - 1
    for position in range(most):
        if any(p[position] != prompts[0][position] for p in prompts):
            return position
    return max(most, 0)
