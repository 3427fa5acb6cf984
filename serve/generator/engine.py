"""Batched, grammar-constrained generation with transformers and xgrammar on CPU or GPU.

Why an own loop (`serve.generator.decoding`) and not `generate`: the prompts of one call share their beginning
(system text and examples), whose keys and values are computed once and repeated; rows leave the batch when
their JSON is closed, and others take their places; the loop can be cancelled between two tokens, reports
progress, and yields the likelihood that ranks the samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import xgrammar
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from qiance.artifacts.writer import WriterAdapter
from qiance.strategy.content_ports import Generated
from qiance.strategy.prompts import Prompt
from serve.generator.carried import ModelUnavailable, quiet_progress
from serve.generator.decoding import Decoder, Row, Sampling
from serve.generator.likelihood import log_likelihoods
from serve.generator.weights import Weights, resolve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# 24 rows decode at 1.5 times the rate of 8 on two cores; more rows only lengthen the wait for the first. On a
# GPU a step of a small model takes as long for many rows as for few: the time goes into launching kernels.
MAX_BATCH = {"cpu": 24, "cuda": 256}


class TransformersEngine:
    """A causal language model that answers in JSON of a given schema.

    name: what provenance calls the weights; languages, takes_segment, tuned: see `TextEngine`.
    location: folder or hub id of the weights; weights: their name, without an adapter's.
    """

    def __init__(
        self, model: Any, tokenizer: Any, weights: Weights, adapter: WriterAdapter | None = None
    ) -> None:
        folder = Path(weights.location)  # whole, since who tunes it may run in another folder
        self.weights, self.location = weights.name, str(folder.resolve() if folder.is_dir() else folder)
        self.name = weights.name if adapter is None else f"{weights.name}+{adapter.version[:8]}"
        self.languages = weights.languages
        self.takes_segment = weights.takes_segment
        self.tuned = frozenset() if adapter is None else adapter.languages
        self.load_seconds = 0.0
        self._model = model
        self._tokenizer = tokenizer
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=self._vocabulary)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2)

    @classmethod
    def load(
        cls,
        model: str,
        cache_dir: Path,
        threads: int = 1,
        dtype: str = "auto",
        adapter: WriterAdapter | None = None,
    ) -> Self:
        """Loads `embedded`, `bilingual`, a local folder, or a Hugging Face id.

        threads: torch's threads in this process, 0 leaves them. More than one pays only on idle cores or with
        OMP_WAIT_POLICY=passive set before torch is imported: otherwise waiting threads spin, and a busy
        machine wrote 5 tokens/s with two threads against 92 with one.
        dtype: float32, bfloat16, float16, or auto, which is bfloat16 where the processor multiplies it (twice
        as fast there), else float32.
        adapter: of `qiance train writer`, merged into the weights.
        Raises ModelUnavailable with the remedy when the weights cannot be had, or are not those that the
        adapter was tuned on.
        """
        if dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype: {dtype!r} is not one of auto, {', '.join(DTYPES)}")
        if threads < 0:
            raise ValueError(f"threads: {threads} is negative; pass 0 to leave torch's default")
        started = time.perf_counter()
        weights = resolve(model, cache_dir)
        if adapter is not None and adapter.base != weights.name:
            raise ModelUnavailable(
                f"adapter: {adapter.folder} was tuned on {adapter.base}, not on {weights.name}; load that "
                "model, or tune an adapter for this one with `qiance train writer`"
            )
        if threads:
            torch.set_num_threads(threads)
        try:
            with quiet_progress():
                options = {"local_files_only": weights.local, "trust_remote_code": False}
                tokenizer = AutoTokenizer.from_pretrained(weights.location, **options)
                network = AutoModelForCausalLM.from_pretrained(
                    weights.location, dtype=_resolve_dtype(dtype), use_safetensors=True, **options
                )
                network = _adapted(network, adapter)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise ModelUnavailable(f"model: {model!r} cannot be loaded: {reason}") from error
        device = "cuda" if torch.cuda.is_available() else "cpu"
        engine = cls(network.to(device).eval(), tokenizer, weights, adapter)
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
        if not rows:
            return []
        answers: dict[int, Generated] = {}

        def finish(row: Row, error: str | None) -> None:
            answers[row.index] = self._answer(row, error)
            if on_progress is not None:
                on_progress(len(answers), len(rows))

        generator = torch.Generator(device=self._model.device).manual_seed(seed)
        sampling = Sampling(temperature, generator, self._avoided(avoid), max_new_tokens)
        most = min(MAX_BATCH[self._model.device.type], len(rows))
        Decoder(self._model, self._vocabulary, rows, grammar, sampling, most, finish).run(cancelled or _never)
        return [answers[index] for index in range(len(rows))]

    def log_likelihoods(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[float]:
        """Natural log probability of each answer, or of its beginning, after its prompt.

        cancelled: asked once per batch; what is not weighed then is NaN.
        """
        rows = [self._encode(prompt) for prompt in prompts]
        said = [list(self._tokenizer.encode(answer, add_special_tokens=False)) for answer in answers]
        return log_likelihoods(self._model, rows, said, cancelled or _never)

    def _compile(self, schema: Mapping[str, Any]) -> Any:
        try:
            return self._compiler.compile_json_schema(
                json.dumps(schema), any_whitespace=False, separators=(", ", ": ")
            )
        except RuntimeError as error:
            raise ValueError(f"schema: cannot be compiled to a grammar: {error}") from error

    def _encode(self, prompt: Prompt) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            prompt.messages(), tokenize=False, add_generation_prompt=True
        )
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _avoided(self, words: Sequence[str]) -> Tensor:
        forms = [form for w in words for form in (w, w.capitalize(), f" {w}", f" {w.capitalize()}")]
        encoded = [self._tokenizer.encode(form, add_special_tokens=False) for form in forms]
        single = sorted({tokens[0] for tokens in encoded if len(tokens) == 1})
        return torch.tensor(single, device=self._model.device, dtype=torch.long)

    def _answer(self, row: Row, error: str | None) -> Generated:
        text = self._tokenizer.decode(row.tokens, skip_special_tokens=True)
        data, error = (None, error) if error else _parse(text)
        likelihood = row.log_probability / max(len(row.tokens), 1)
        return Generated(text, data, error, len(row.tokens), likelihood)


def _adapted(network: Any, adapter: WriterAdapter | None) -> Any:
    if adapter is None:
        return network
    from peft import PeftModel

    return PeftModel.from_pretrained(network, str(adapter.folder), local_files_only=True).merge_and_unload()


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
