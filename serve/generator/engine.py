"""Batched, grammar-constrained generation with transformers and xgrammar on CPU or GPU.

Why an own loop and not `generate`: the prompts of one call share their beginning (system text and examples),
whose keys and values are computed once and repeated; rows leave the batch when their JSON is closed; the loop
can be cancelled between two tokens, reports progress, and yields the likelihood that ranks the samples.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
import xgrammar
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from qiance.strategy.content_ports import Generated
from qiance.strategy.prompts import Prompt
from serve.generator.carried import ModelUnavailable, quiet_progress
from serve.generator.likelihood import common_prefix, log_likelihoods
from serve.generator.weights import Weights, resolve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What an avoided word's logit loses: near to never, yet the grammar can always go on.
AVOIDED = 15.0
# Divides (or multiplies, below 0) the logit of a token that the row has written: Keskar et al. 2019, CTRL.
REPETITION = 1.15
# 24 rows decode at 1.5 times the rate of 8 on two cores; more rows only lengthen the wait for the first. On a
# GPU a step of a small model takes as long for many rows as for few: the time goes into launching kernels.
MAX_BATCH = {"cpu": 24, "cuda": 256}


@dataclass(slots=True)
class _Row:
    """One sequence being written: where its answer goes, its grammar state, and what it has so far."""

    index: int
    matcher: Any
    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0


class TransformersEngine:
    """A causal language model that answers in JSON of a given schema.

    name: what provenance calls the weights; languages, takes_segment: see `TextEngine`.
    """

    def __init__(self, model: Any, tokenizer: Any, weights: Weights) -> None:
        self.name = weights.name
        self.languages = weights.languages
        self.takes_segment = weights.takes_segment
        self.load_seconds = 0.0
        self._model = model
        self._tokenizer = tokenizer
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=self._vocabulary)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2)

    @classmethod
    def load(cls, model: str, cache_dir: Path, threads: int = 1, dtype: str = "auto") -> Self:
        """Loads `embedded`, `bilingual`, a local folder, or a Hugging Face id.

        threads: torch's threads in this process, 0 leaves them. More than one pays only on idle cores or with
        OMP_WAIT_POLICY=passive set before torch is imported: otherwise waiting threads spin, and a busy
        machine wrote 5 tokens/s with two threads against 92 with one.
        dtype: float32, bfloat16, float16, or auto, which is bfloat16 where the processor multiplies it (twice
        as fast there), else float32.
        Raises ModelUnavailable when the weights cannot be had, with the remedy.
        """
        if dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype: {dtype!r} is not one of auto, {', '.join(DTYPES)}")
        if threads < 0:
            raise ValueError(f"threads: {threads} is negative; pass 0 to leave torch's default")
        started = time.perf_counter()
        weights = resolve(model, cache_dir)
        if threads:
            torch.set_num_threads(threads)
        try:
            with quiet_progress():
                options = {"local_files_only": weights.local, "trust_remote_code": False}
                tokenizer = AutoTokenizer.from_pretrained(weights.location, **options)
                network = AutoModelForCausalLM.from_pretrained(
                    weights.location, dtype=_resolve_dtype(dtype), use_safetensors=True, **options
                )
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise ModelUnavailable(f"model: {model!r} cannot be loaded: {reason}") from error
        device = "cuda" if torch.cuda.is_available() else "cpu"
        engine = cls(network.to(device).eval(), tokenizer, weights)
        engine.load_seconds = time.perf_counter() - started
        return engine

    def generate_json(
        self,
        prompts: Sequence[Prompt],
        schema: Mapping[str, Any],
        *,
        max_new_tokens: int = 120,
        temperature: float = 0.4,
        seed: int = 0,
        avoid: Sequence[str] = (),
        on_progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Generated]:
        """One answer per prompt, in order; the same arguments on the same machine give the same answers.

        temperature: 0 takes the likeliest token; avoid: words made unlikely where they are a single token.
        on_progress(done, total) counts finished answers.
        cancelled: asked once per token; what is unfinished then comes back with `error="cancelled"`.
        Raises ValueError for a schema that cannot be compiled or numbers out of range.
        """
        _check_numbers(max_new_tokens, temperature)
        grammar = self._compile(schema)
        rows = [self._encode(prompt) for prompt in prompts]
        answers: list[Generated | None] = [None] * len(rows)
        generator = torch.Generator(device=self._model.device).manual_seed(seed)
        avoided = self._avoided(avoid)

        def finish(index: int, answer: Generated) -> None:
            answers[index] = answer
            if on_progress is not None:
                on_progress(sum(a is not None for a in answers), len(answers))

        most = MAX_BATCH[self._model.device.type]
        for start in range(0, len(rows), most):
            batch = list(range(start, min(start + most, len(rows))))
            run = _Decoding(self, [rows[i] for i in batch], batch, grammar, temperature, generator, avoided)
            run.write(max_new_tokens, finish, cancelled or _never)
        return [a for a in answers if a is not None]

    def log_likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Natural log probability of each answer, or of its beginning, after its prompt."""
        rows = [self._encode(prompt) for prompt in prompts]
        said = [list(self._tokenizer.encode(answer, add_special_tokens=False)) for answer in answers]
        return log_likelihoods(self._model, rows, said)

    def _compile(self, schema: Mapping[str, Any]) -> Any:
        try:
            return self._compiler.compile_json_schema(
                json.dumps(schema), any_whitespace=False, separators=(", ", ": ")
            )
        except RuntimeError as error:
            raise ValueError(f"schema: cannot be compiled to a grammar: {error}") from error

    def _encode(self, prompt: Prompt) -> list[int]:
        messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for question, answer in prompt.turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": prompt.user})
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _avoided(self, words: Sequence[str]) -> Tensor:
        forms = [form for w in words for form in (w, w.capitalize(), f" {w}", f" {w.capitalize()}")]
        encoded = [self._tokenizer.encode(form, add_special_tokens=False) for form in forms]
        single = sorted({tokens[0] for tokens in encoded if len(tokens) == 1})
        return torch.tensor(single, device=self._model.device, dtype=torch.long)

    def _answer(self, row: _Row, error: str | None) -> Generated:
        text = self._tokenizer.decode(row.tokens, skip_special_tokens=True)
        data, error = (None, error) if error else _parse(text)
        likelihood = row.log_probability / max(len(row.tokens), 1)
        return Generated(text, data, error, len(row.tokens), likelihood)


class _Decoding:
    """One static batch: prefill, then token by token until every row has closed its JSON."""

    def __init__(
        self,
        engine: TransformersEngine,
        prompts: Sequence[list[int]],
        indices: Sequence[int],
        grammar: Any,
        temperature: float,
        generator: torch.Generator,
        avoided: Tensor,
    ) -> None:
        self._engine = engine
        self._model = engine._model
        self._temperature = temperature
        self._generator = generator
        self._avoided = avoided
        self._rows = [_Row(i, xgrammar.GrammarMatcher(grammar)) for i in indices]
        self._bitmask = xgrammar.allocate_token_bitmask(len(self._rows), engine._vocabulary)
        # The replica's own core and one beside it; with a GPU, the cores that the GPU would wait for.
        fillers = 2 if self._model.device.type == "cpu" else min(8, os.cpu_count() or 1)
        self._filler = xgrammar.BatchGrammarMatcher(max_threads=fillers)
        self._prompts = prompts
        # `[B, L]`: rows of a batch start together, so those still in it have written equally much.
        self._written = avoided.new_empty((len(self._rows), 0))

    @torch.inference_mode()
    def write(
        self, max_new_tokens: int, finish: Callable[[int, Generated], None], cancelled: Callable[[], bool]
    ) -> None:
        """Hands every row to `finish` exactly once."""
        logits = self._prefill()
        for _ in range(max_new_tokens):
            if cancelled():
                return self._abandon("cancelled", finish)
            chosen = self._sample(logits)
            logits_needed = self._accept(chosen, finish)
            if logits_needed is None:
                return None
            logits = self._step(chosen[logits_needed])
        return self._abandon(f"not finished within {max_new_tokens} tokens", finish)

    def _prefill(self) -> Tensor:
        """Next-token logits `[B, V]` after the prompts, padded on the left behind their common prefix."""
        shared = common_prefix(self._prompts)
        device, pad = self._model.device, self._engine._tokenizer.pad_token_id or 0
        longest = max(len(p) for p in self._prompts) - shared
        tails = [p[shared:] for p in self._prompts]
        ids = torch.tensor([[pad] * (longest - len(t)) + t for t in tails], device=device)
        seen = [[1] * shared + [0] * (longest - len(t)) + [1] * len(t) for t in tails]
        self._mask = torch.tensor(seen, device=device)
        self._cache = DynamicCache(config=self._model.config)
        if shared:
            head = torch.tensor([self._prompts[0][:shared]], device=device)
            self._model(input_ids=head, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache.batch_repeat_interleave(len(tails))
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
        return self._forward(ids, positions)

    def _step(self, tokens: Tensor) -> Tensor:
        positions = self._mask.sum(1, keepdim=True)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        return self._forward(tokens[:, None], positions)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return torch.as_tensor(out.logits[:, -1], dtype=torch.float32)

    def _sample(self, logits: Tensor) -> Tensor:
        """One token `[B]` per row among those that the grammar admits; notes its log probability."""
        self._discourage(logits)
        matchers = [row.matcher for row in self._rows]
        bitmask = self._bitmask[: len(matchers)]
        self._filler.batch_fill_next_token_bitmask(matchers, bitmask)
        xgrammar.apply_token_bitmask_inplace(logits, bitmask.to(logits.device))
        scores = torch.log_softmax(logits, dim=-1)
        if self._temperature == 0.0:
            chosen = scores.argmax(-1)
        else:
            weights = torch.softmax(logits / self._temperature, dim=-1)
            chosen = torch.multinomial(weights, 1, generator=self._generator)[:, 0]
        for row, gain in zip(self._rows, scores.gather(1, chosen[:, None])[:, 0].tolist(), strict=True):
            row.log_probability += gain
        return chosen

    def _discourage(self, logits: Tensor) -> None:
        logits[:, self._avoided] -= AVOIDED
        values = logits.gather(1, self._written)
        penalised = torch.where(values > 0, values / REPETITION, values * REPETITION)
        logits.scatter_(1, self._written, penalised)

    def _accept(self, chosen: Tensor, finish: Callable[[int, Generated], None]) -> Tensor | None:
        """Advances the grammars; returns the batch positions that go on, None when none does."""
        going = []
        for position, (row, token) in enumerate(zip(self._rows, chosen.tolist(), strict=True)):
            assert row.matcher.accept_token(token), "the mask admits only tokens that the grammar accepts"
            if row.matcher.is_terminated():
                finish(row.index, self._engine._answer(row, None))
            else:
                row.tokens.append(token)
                going.append(position)
        keep = torch.tensor(going, device=chosen.device, dtype=torch.long)
        if going and len(going) < len(self._rows):
            self._cache.batch_select_indices(keep)
            self._mask, self._written = self._mask[keep], self._written[keep]
        if going:
            self._written = torch.cat([self._written, chosen[keep, None]], dim=1)
        self._rows = [self._rows[position] for position in going]
        return keep if going else None

    def _abandon(self, reason: str, finish: Callable[[int, Generated], None]) -> None:
        for row in self._rows:
            finish(row.index, self._engine._answer(row, reason))


def _parse(text: str) -> tuple[dict[str, Any] | None, str | None]:
    try:
        data = json.loads(text)
    except ValueError as error:
        return None, f"not JSON: {error}"
    return (data, None) if isinstance(data, dict) else (None, f"not a JSON object: {text[:40]!r}")


def _resolve_dtype(name: str) -> torch.dtype:
    if name != "auto":
        return DTYPES[name]
    able = torch.cuda.is_available() or any(
        torch.cpu.get_capabilities().get(flag, False) for flag in ("avx512_bf16", "amx_bf16")
    )
    return torch.bfloat16 if able else torch.float32


def _check_numbers(max_new_tokens: int, temperature: float) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: {max_new_tokens} is below 1")
    if not 0.0 <= temperature <= 2.0:
        raise ValueError(f"temperature: {temperature} is outside [0, 2]")


def _never() -> bool:
    return False
