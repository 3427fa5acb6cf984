"""Continuous batching: rows leave the batch when they are finished, and others take their places.

Rows that came at different times lie beside each other in one cache, padded on the left: the mask hides the
padding, and positions are counted by the mask, so a row's tokens do not depend on who else is there. The
beginning that all prompts share is read once, for all rows.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import xgrammar
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from serve.generator.likelihood import begun, common_prefix, read

# What an avoided word's logit loses: near to never, yet the grammar can always go on.
AVOIDED = 15.0
# Divides (or multiplies, below 0) the logit of a token that the row has written: Keskar et al. 2019, CTRL.
REPETITION = 1.15
# New rows come in when this share of the places is free: reading a prompt delays all that are being written.
REFILL = 0.25


@dataclass(slots=True)
class Row:
    """One sequence being written: where its answer goes, its grammar state, and what it has so far."""

    index: int
    matcher: Any
    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature: 0 takes the likeliest; avoided: tokens made unlikely, `[K]`."""

    temperature: float
    generator: torch.Generator
    avoided: Tensor
    max_new_tokens: int


class Decoder:
    """Writes answers under a grammar, at most `most` at a time; used once.

    finish: gets every row exactly once, with the reason where it was not finished.
    """

    def __init__(
        self,
        model: Any,
        vocabulary: int,
        prompts: Sequence[Sequence[int]],
        grammar: Any,
        sampling: Sampling,
        most: int,
        finish: Callable[[Row, str | None], None],
    ) -> None:
        self._model, self._vocabulary, self._sampling = model, vocabulary, sampling
        self._most, self._finish = most, finish
        self._shared = common_prefix(prompts)
        self._head = read(model, prompts[0][: self._shared]) if self._shared else None
        self._tails = [list(prompt[self._shared :]) for prompt in prompts]
        self._waiting = deque(Row(n, xgrammar.GrammarMatcher(grammar)) for n in range(len(prompts)))
        self._rows: list[Row] = []
        self._cache = DynamicCache(config=model.config)
        device = model.device
        self._mask = torch.empty((0, 0), dtype=torch.long, device=device)
        self._written = torch.empty((0, vocabulary), dtype=torch.bool, device=device)
        self._logits = torch.empty((0, vocabulary), device=device)
        self._bitmask = xgrammar.allocate_token_bitmask(most, vocabulary)
        # The replica's own core and one beside it; with a GPU, the cores that the GPU would wait for.
        fillers = 2 if device.type == "cpu" else min(8, os.cpu_count() or 1)
        self._filler = xgrammar.BatchGrammarMatcher(max_threads=fillers)

    @torch.inference_mode()
    def run(self, cancelled: Callable[[], bool]) -> None:
        """Until every row is finished, or somebody cancels."""
        while self._rows or self._waiting:
            if cancelled():
                return self._abandon("cancelled")
            if self._has_room():
                self._admit(min(self._most - len(self._rows), len(self._waiting)))
            chosen = self._sample()
            keep = self._accept(chosen)
            self._leave_only(keep)
            if self._rows:
                self._step(chosen[keep])
        return None

    def _has_room(self) -> bool:
        free = self._most - len(self._rows)
        if not self._waiting or (self._rows and not self._joins):
            return False
        return not self._rows or free >= max(1, int(REFILL * self._most))

    @property
    def _joins(self) -> bool:
        """Whether caches of different lengths can be put together: not where layers forget."""
        return all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def _admit(self, count: int) -> None:
        """Reads the next `count` prompts and puts them beside the rows that are being written."""
        rows = [self._waiting.popleft() for _ in range(count)]
        tails = [self._tails[row.index] for row in rows]
        longest, shared, device = max(map(len, tails)), self._shared, self._model.device
        ids = torch.tensor([[0] * (longest - len(t)) + t for t in tails], device=device)
        mask = torch.tensor(
            [[1] * shared + [0] * (longest - len(t)) + [1] * len(t) for t in tails], device=device
        )
        cache = begun(self._model, self._head, count)
        logits = self._forward(cache, mask, ids, (mask.cumsum(1) - 1).clamp(min=0)[:, shared:])
        unwritten = torch.zeros((count, self._vocabulary), dtype=torch.bool, device=device)
        self._join(cache, mask)
        self._rows += rows
        self._written = torch.cat([self._written, unwritten])
        self._logits = torch.cat([self._logits, logits])

    def _join(self, cache: DynamicCache, mask: Tensor) -> None:
        if not self._rows:
            self._cache, self._mask = cache, mask
            return
        self._drop_padding()
        length = max(self._mask.shape[1], mask.shape[1])
        for own, new in zip(self._cache.layers, cache.layers, strict=True):
            own.keys = torch.cat([_widened(own.keys, length), _widened(new.keys, length)])
            own.values = torch.cat([_widened(own.values, length), _widened(new.values, length)])
        parts = [pad(m, (length - m.shape[1], 0)) for m in (self._mask, mask)]
        self._mask = torch.cat(parts)

    def _drop_padding(self) -> None:
        """Takes away the columns that only rows had which are gone."""
        first = int(self._mask.any(0).int().argmax())
        if first:
            self._mask = self._mask[:, first:]
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[..., first:, :], layer.values[..., first:, :]

    def _step(self, tokens: Tensor) -> None:
        positions = self._mask.sum(1, keepdim=True)
        self._mask = pad(self._mask, (0, 1), value=1)
        self._logits = self._forward(self._cache, self._mask, tokens[:, None], positions)

    def _forward(self, cache: Any, mask: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token, `[B, V]`."""
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return torch.as_tensor(out.logits[:, -1], dtype=torch.float32)

    def _sample(self) -> Tensor:
        """One token `[B]` per row among those that the grammar admits; notes its log probability."""
        logits = self._logits
        logits[:, self._sampling.avoided] -= AVOIDED
        penalised = torch.where(logits > 0, logits / REPETITION, logits * REPETITION)
        logits = torch.where(self._written, penalised, logits)
        matchers = [row.matcher for row in self._rows]
        bitmask = self._bitmask[: len(matchers)]
        self._filler.batch_fill_next_token_bitmask(matchers, bitmask)
        xgrammar.apply_token_bitmask_inplace(logits, bitmask.to(logits.device))
        scores = torch.log_softmax(logits, dim=-1)
        chosen = self._choose(logits, scores)
        for row, gain in zip(self._rows, scores.gather(1, chosen[:, None])[:, 0].tolist(), strict=True):
            row.log_probability += gain
        return chosen

    def _choose(self, logits: Tensor, scores: Tensor) -> Tensor:
        if self._sampling.temperature == 0.0:
            return scores.argmax(-1)
        weights = torch.softmax(logits / self._sampling.temperature, dim=-1)
        return torch.multinomial(weights, 1, generator=self._sampling.generator)[:, 0]

    def _accept(self, chosen: Tensor) -> Tensor:
        """Advances the grammars; the places of the rows that go on."""
        going = []
        for place, (row, token) in enumerate(zip(self._rows, chosen.tolist(), strict=True)):
            assert row.matcher.accept_token(token), "the mask admits only tokens that the grammar accepts"
            if row.matcher.is_terminated():
                self._finish(row, None)
                continue
            row.tokens.append(token)
            if len(row.tokens) >= self._sampling.max_new_tokens:
                self._finish(row, f"not finished within {self._sampling.max_new_tokens} tokens")
            else:
                going.append(place)
        self._written.scatter_(1, chosen[:, None], True)
        return torch.tensor(going, device=chosen.device, dtype=torch.long)

    def _leave_only(self, keep: Tensor) -> None:
        if len(keep) == len(self._rows):
            return
        self._rows = [self._rows[place] for place in keep.tolist()]
        self._mask, self._written = self._mask[keep], self._written[keep]
        self._logits = self._logits[keep]
        if self._rows:
            self._cache.batch_select_indices(keep)

    def _abandon(self, reason: str) -> None:
        for row in (*self._rows, *self._waiting):
            self._finish(row, reason)


def _widened(states: Tensor, length: int) -> Tensor:
    """`[B, heads, length, D]` with zeros before the states, which the mask hides."""
    return pad(states, (0, 0, length - states.shape[-2], 0))
