"""A language model behind an OpenAI-compatible server, such as vLLM through Ray Serve LLM.

What is asked of the server beyond the OpenAI API are vLLM's own fields: `bad_words`, `prompt_logprobs`,
`continue_final_message`. The server binds the answer to the schema (`response_format`), by the same kind of
grammar as the engine in this process; it batches, and shares the beginning of prompts, by itself, so that all
are sent at once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from qiance.strategy.content_ports import EngineUnavailable, Generated
from qiance.strategy.prompts import Prompt

AT_ONCE: Final = 64  # requests under way: vLLM takes hundreds, and a brief has dozens
_POLL_S: Final = 0.2
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 0.5
_BUSY: Final = (429, 500, 502, 503, 504)
T = TypeVar("T")


class RemoteEngine:
    """Asks a server for words; see `TextEngine`.

    endpoint: base address with the version, e.g. `http://llm:8000/v1`. model: as the server calls it.
    key_file: holds the key that is sent as a bearer token. timeout_s: for one answer.
    """

    takes_segment = True
    languages = frozenset({"en", "zh"})
    tuned: frozenset[str] = frozenset()

    def __init__(
        self, endpoint: str, model: str, key_file: Path | None = None, timeout_s: float = 60.0
    ) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint: {endpoint!r} is no address; pass e.g. http://llm:8000/v1")
        self.name, self._model = model, model
        headers = {} if key_file is None else {"authorization": f"Bearer {_key(key_file)}"}
        self._client = httpx.Client(base_url=endpoint.rstrip("/") + "/", headers=headers, timeout=timeout_s)
        self._count = lru_cache(maxsize=4_096)(self._prompt_tokens)

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
        """One answer per prompt, in order; what is not finished when `cancelled` has `error="cancelled"`.

        Raises EngineUnavailable when the server cannot be reached, refuses, or answers in another form.
        """
        common = {
            "model": self._model,
            "max_completion_tokens": max_new_tokens,
            "temperature": temperature,
            "logprobs": True,
            "bad_words": list(avoid),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(schema), "strict": True},
            },
        }
        bodies = [
            {**common, "messages": prompt.messages(), "seed": seed * 1_000_003 + number}
            for number, prompt in enumerate(prompts)
        ]
        answers = [Generated("", None, "cancelled", 0)] * len(prompts)
        for done, (number, found) in enumerate(self._ask_all(bodies, cancelled), start=1):
            answers[number] = self._read(_generated, found)
            if on_progress is not None:
                on_progress(done, len(prompts))
        return answers

    def log_likelihoods(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[float]:
        """Natural log probability of each answer, or of its beginning, after its prompt.

        NaN for what was not weighed before `cancelled`. Raises EngineUnavailable, see `generate_json`.
        """
        bodies = [
            {
                "model": self._model,
                "messages": [*prompt.messages(), {"role": "assistant", "content": answer}],
                "add_generation_prompt": False,
                "continue_final_message": True,
                "max_completion_tokens": 1,
                "prompt_logprobs": 0,
            }
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        found = [math.nan] * len(prompts)
        for number, reply in self._ask_all(bodies, cancelled):
            begun = self._count(prompts[number])
            found[number] = self._read(partial(_likelihood, begun), reply)
        return found

    def _prompt_tokens(self, prompt: Prompt) -> int:
        body = {"model": self._model, "messages": prompt.messages(), "max_completion_tokens": 1}
        return self._read(lambda reply: int(reply["usage"]["prompt_tokens"]), self._ask(body))

    def _read(self, reader: Callable[[Mapping[str, Any]], T], reply: Mapping[str, Any]) -> T:
        try:
            return reader(reply)
        except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
            raise EngineUnavailable(
                f"{self._client.base_url} answers in another form than vLLM does: {error!r}"
            ) from error

    def _ask_all(
        self, bodies: Sequence[Mapping[str, Any]], cancelled: Callable[[], bool] | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Replies with their numbers, as they come."""
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="qiance-llm")
        waiting: dict[Future[dict[str, Any]], int] = {}
        try:
            waiting = {pool.submit(self._ask, body): number for number, body in enumerate(bodies)}
            while waiting and not (cancelled is not None and cancelled()):
                for reply in wait(waiting, _POLL_S, FIRST_COMPLETED).done:
                    yield waiting.pop(reply), reply.result()
        finally:
            # Those under way end by themselves: at most AT_ONCE short answers that nobody waits for.
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                reply = self._client.post("chat/completions", json=body)
            except httpx.TransportError as error:
                if attempt == _ATTEMPTS:
                    raise EngineUnavailable(f"{self._client.base_url} does not answer: {error}") from error
                time.sleep(_PAUSE_S * attempt)
                continue
            if reply.status_code not in _BUSY or attempt == _ATTEMPTS:
                break
            time.sleep(_PAUSE_S * attempt)
        if reply.is_success:
            return dict(reply.json())
        raise EngineUnavailable(f"{self._client.base_url} answers {reply.status_code}: {reply.text[:300]}")


def _generated(reply: Mapping[str, Any]) -> Generated:
    choice = reply["choices"][0]
    text = choice["message"]["content"] or ""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    likelihood = math.fsum(token["logprob"] for token in tokens) / max(len(tokens), 1)
    data, error = None, None
    if choice["finish_reason"] == "length":
        error = "not finished within the most tokens allowed"
    else:
        try:
            data = json.loads(text)
        except ValueError as fault:
            error = f"not JSON: {fault}"
    if error is None and not isinstance(data, dict):
        data, error = None, f"not a JSON object: {text[:40]!r}"
    return Generated(text, data, error, len(tokens), likelihood)


def _likelihood(first: int, reply: Mapping[str, Any]) -> float:
    """Of the tokens of the prompt from the `first` on."""
    places: Sequence[Mapping[str, Mapping[str, Any]]] = reply["prompt_logprobs"][first:]
    return math.fsum(float(next(iter(place.values()))["logprob"]) for place in places)


def _key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise EngineUnavailable(f"key_file: {path} cannot be read: {error.strerror}") from error
