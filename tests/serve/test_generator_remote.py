"""A model behind an OpenAI-compatible server: a real one over HTTP, with the tiny model in it."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from tiny_model import write_tiny_model

from qiance.strategy.content_ports import EngineUnavailable
from qiance.strategy.prompts import Prompt
from serve.args import LlmArgs
from serve.generator.engine import TransformersEngine
from serve.generator.remote import RemoteEngine

SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "pattern": "^[a-z]{3,12}$"}},
    "required": ["word"],
    "additionalProperties": False,
}
PROMPTS = [Prompt("Be brief.", f"Say {'x' * n} please.", (("Say a.", "a"),)) for n in range(12)]


class Server:
    """What vLLM does with the fields that are sent, for one request at a time. trouble: status by turns."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.lock = engine, threading.Lock()
        self.asked: list[Mapping[str, Any]] = []
        self.trouble: list[int] = []
        self.key = ""
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.complete)

    async def complete(self, request: Request) -> Any:
        body = await request.json()
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "no such key"}, 401)
        if body["model"] != "writer":
            return JSONResponse({"error": f"no model {body['model']}"}, 404)
        if self.trouble:
            return JSONResponse({"error": "busy"}, self.trouble.pop())
        self.asked.append(body)
        with self.lock:
            return self.weighed(body) if body.get("continue_final_message") else self.written(body)

    def tokens(self, messages: list[dict[str, str]], answer: str | None = None) -> list[int]:
        tokenizer = self.engine._tokenizer
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(text + (answer or ""), add_special_tokens=False))

    @torch.inference_mode()
    def weighed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        assert body["add_generation_prompt"] is False
        ids = self.tokens(body["messages"][:-1], body["messages"][-1]["content"])
        scores = torch.log_softmax(self.engine._model(torch.tensor([ids])).logits[0].float(), -1)
        places: list[Any] = [None]
        places += [{str(t): {"logprob": float(scores[n, t]), "rank": 1}} for n, t in enumerate(ids[1:])]
        choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "length"}
        return {"choices": [choice], "prompt_logprobs": places, "usage": {"prompt_tokens": len(ids)}}

    def written(self, body: Mapping[str, Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": len(self.tokens(body["messages"]))}
        if "response_format" not in body:
            return {"choices": [], "usage": usage}
        system, *turns = [message["content"] for message in body["messages"]]
        prompt = Prompt(system, turns[-1], tuple(zip(turns[:-1:2], turns[1::2], strict=True)))
        (found,) = self.engine.generate_json(
            [prompt],
            body["response_format"]["json_schema"]["schema"],
            max_new_tokens=body["max_completion_tokens"],
            temperature=body["temperature"],
            seed=body["seed"],
            avoid=body["bad_words"],
        )
        logprobs = {"content": [{"token": "?", "logprob": found.likelihood}] * found.tokens}
        reason = "length" if found.error else "stop"
        choice = {"message": {"content": found.text}, "finish_reason": reason, "logprobs": logprobs}
        return {"choices": [choice], "usage": usage}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return TransformersEngine.load(str(folder), tmp_path_factory.mktemp("cache"), 1, "float32")


@pytest.fixture
def served(local: TransformersEngine) -> Iterator[tuple[Server, str]]:
    found = Server(local)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    web = uvicorn.Server(uvicorn.Config(found.app, "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    yield found, f"http://127.0.0.1:{port}/v1"
    web.should_exit = True
    thread.join()


def test_answers_are_those_of_the_model_behind(local: TransformersEngine, served: tuple[Server, str]) -> None:
    server, address = served
    told: list[tuple[int, int]] = []
    found = RemoteEngine(address, "writer").generate_json(
        PROMPTS, SCHEMA, max_new_tokens=40, seed=3, avoid=["bad"], on_progress=lambda *n: told.append(n)
    )
    assert told == [(n, 12) for n in range(1, 13)]
    for number, (prompt, answer) in enumerate(zip(PROMPTS, found, strict=True)):
        (own,) = local.generate_json(
            [prompt], SCHEMA, max_new_tokens=40, temperature=0.4, seed=3_000_009 + number, avoid=["bad"]
        )
        assert (answer.text, answer.data, answer.tokens) == (own.text, own.data, own.tokens)
        assert answer.likelihood == pytest.approx(own.likelihood)
    assert {body["temperature"] for body in server.asked} == {0.4}


def test_likelihoods_are_those_of_the_model_behind(
    local: TransformersEngine, served: tuple[Server, str]
) -> None:
    answers = [f"answer 好 {'y' * n}" for n in range(12)]
    found = RemoteEngine(served[1], "writer").log_likelihoods(PROMPTS, answers)
    assert found == pytest.approx(local.log_likelihoods(PROMPTS, answers), rel=1e-4)


def test_what_is_not_finished_is_said(served: tuple[Server, str]) -> None:
    engine = RemoteEngine(served[1], "writer")
    (cut,) = engine.generate_json(PROMPTS[:1], SCHEMA, max_new_tokens=3)
    assert (cut.data, cut.error) == (None, "not finished within the most tokens allowed")
    found = engine.generate_json(PROMPTS, SCHEMA, cancelled=lambda: True)
    assert [one.error for one in found] == ["cancelled"] * 12
    assert all(math.isnan(one) for one in engine.log_likelihoods(PROMPTS, ["a"] * 12, cancelled=lambda: True))
    assert engine.generate_json([], SCHEMA) == []


def test_a_server_that_is_busy_is_asked_again(served: tuple[Server, str]) -> None:
    server, address = served
    server.trouble = [503, 429]
    (found,) = RemoteEngine(address, "writer").generate_json(PROMPTS[:1], SCHEMA, max_new_tokens=40)
    assert found.error is None
    server.trouble = [503] * 3
    with pytest.raises(EngineUnavailable, match="answers 503"):
        RemoteEngine(address, "writer").generate_json(PROMPTS[:1], SCHEMA)


def test_what_is_wrong_with_a_server_is_said(served: tuple[Server, str], tmp_path: Path) -> None:
    server, address = served
    with pytest.raises(EngineUnavailable, match=r"answers 404: .*no model another"):
        RemoteEngine(address, "another").generate_json(PROMPTS[:1], SCHEMA)
    server.key = "secret"
    (tmp_path / "key").write_text("secret\n")
    with pytest.raises(EngineUnavailable, match="answers 401"):
        RemoteEngine(address, "writer").generate_json(PROMPTS[:1], SCHEMA)
    assert RemoteEngine(address, "writer", tmp_path / "key").generate_json(PROMPTS[:1], SCHEMA)[0].text
    with pytest.raises(EngineUnavailable, match=r"key_file: .* cannot be read"):
        RemoteEngine(address, "writer", tmp_path / "none")
    with pytest.raises(EngineUnavailable, match="does not answer"):
        RemoteEngine("http://127.0.0.1:9/v1", "writer").generate_json(PROMPTS[:1], SCHEMA)
    with pytest.raises(ValueError, match="endpoint: 'llm:8000' is no address"):
        RemoteEngine("llm:8000", "writer")


def test_an_answer_of_another_form_is_refused(
    served: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, address = served
    monkeypatch.setattr(server, "weighed", lambda _body: {"choices": []})
    with pytest.raises(EngineUnavailable, match="in another form than vLLM does: KeyError"):
        RemoteEngine(address, "writer").log_likelihoods(PROMPTS[:1], ["a"])


def test_the_packaged_configuration_is_one_of_ray_serve_llm() -> None:
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    path = Path("serve/config/llm/vllm.yaml")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = ServeDeploySchema.model_validate(document)
    assert schema.http_options.host == "127.0.0.1"
    (config,) = (LLMConfig(**one) for one in schema.applications[0].args["llm_configs"])
    assert config.model_id == "qiance-writer"
    assert LlmArgs(model=config.model_id, endpoint="http://127.0.0.1:8000/v1").endpoint
