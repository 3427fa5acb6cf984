"""The predictor and the generator on a GPU where torch sees one; the scorer of a decision on one core.

On a GPU: rows a second from arrays to arrays, and the share of the roofline that the kernels reach. The
roofline is measured on the same device: a large matrix product, and a large copy. On the processor: one user
and 32 users × 500 actions, from feature values to values and costs, on one thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Args, alternate, emit, log, median_of, parse
from benchmarks.scorer_case import Case, WholeRows, users, write_model
from qiance.artifacts import EffectModel, load_program
from qiance.artifacts.effect import ACTIONS, PAIRS
from qiance.artifacts.runner import DTYPES, Runner

NO_GPU = "torch sees no GPU"
ITEMS, ACTIONS_OFFERED, MANY = 5_000, 500, 32
PROMPTS, NEW_TOKENS = 256, 80


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what this machine has and print the figures."""
    args = parse(argv, "Rows a second of the predictor and tokens a second of the generator on a GPU.")
    random = np.random.default_rng(args.seed)
    case = Case.draw(args.pick(smoke=200, quick=ITEMS, full=ITEMS), ACTIONS_OFFERED, random)
    there = torch.cuda.is_available()
    figures: dict[str, Any] = {"rows_per_s": None, "roofline_share": None, "tokens_per_s": None}
    protocol: dict[str, Any] = {
        "items": len(case.catalogue), "actions": len(case.actions), "heads": 8, "hidden": [64, 32]
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        artifact = write_model(Path(folder))
        figures["cpu"], own = on_processor(artifact, case, args, random)
        protocol |= own
        if there:
            by_dtype = {dtype: on_gpu(artifact, case, args, dtype, random) for dtype in DTYPES}
            figures |= by_dtype["float32"] | {"bfloat16": by_dtype["bfloat16"]}
            figures["tokens_per_s"], reason = tokens_per_s(Path(folder), args)
        else:
            reason = NO_GPU
    protocol["gpu"] = torch.cuda.get_device_name() if there else f"none: {NO_GPU}"
    protocol["missing"] = {name: reason for name, value in figures.items() if value is None}
    emit("gpu", args, figures, {}, protocol)


def on_processor(
    artifact: Path, case: Case, args: Args, random: np.random.Generator
) -> tuple[dict[str, float], dict[str, Any]]:
    """Milliseconds of `ActionGrid.score` on one thread; `rows`: the same with a row per pair."""
    model = EffectModel.load(artifact, threads=1)
    parts, rows = case.grid(model), case.grid(WholeRows(model))
    one, many = users(1, random), users(MANY, random)
    repeats = args.pick(smoke=5, quick=100, full=400)
    calls = {"one": lambda: parts.score(one), "one_rows": lambda: rows.score(one)}
    times = _timed(calls, repeats)
    calls = {"many": lambda: parts.score(many), "many_rows": lambda: rows.score(many)}
    times |= _timed(calls, max(repeats // 5, 3))
    scores = parts.score(many)
    times |= _timed({"effect": lambda: scores.effect(0, 0)}, repeats)
    middle = {name: median_of(seconds) * 1e3 for name, seconds in times.items()}
    figures = {
        "ms_1x500": middle["one"],
        "ms_32x500": middle["many"],
        "ms_per_user_of_32": middle["many"] / MANY,
        "ms_1x500_rows": middle["one_rows"],
        "ms_32x500_rows": middle["many_rows"],
        "ms_effect": middle["effect"],
        "least_ms_1x500": min(times["one"]) * 1e3,
        "rows_per_s": MANY * (len(case.actions) + 1) / middle["many"] * 1e3,
    }
    return figures, {"repeats": repeats, "threads": 1}


def on_gpu(
    artifact: Path, case: Case, args: Args, dtype: str, random: np.random.Generator
) -> dict[str, float]:
    """Rows a second from arrays to arrays, without and with CUDA graphs, and the share of the roofline."""
    asked = users(args.pick(smoke=32, quick=512, full=2_048), random)
    repeats = args.pick(smoke=3, quick=10, full=30)
    rows = len(asked) * (len(case.actions) + 1)
    found: dict[str, float] = {}
    for name, graphs in (("rows_per_s", False), ("graphs_rows_per_s", True)):
        model = EffectModel.load(artifact, device="cuda", dtype=dtype, cuda_graphs=graphs)
        prepared, encoded = case.prepared(model)
        user, pair = encoded.user(asked), encoded.pair(asked)
        seconds = _timed({name: partial(prepared.predict, user, pair)}, repeats)[name]
        found[name] = rows / median_of(seconds)
    runner = Runner(device="cuda", dtype=dtype)
    program, inputs = pair_pass(runner, artifact, encoded.num, encoded.cat, user, pair)
    work = kernel_work(runner, program, inputs)
    found["roofline_share"] = work.share(measure_roof("cuda", getattr(torch, dtype), size=8_192))
    return found | {"kernels_ms": work.seconds * 1e3} | alternatives_ms(runner, program, inputs)


@torch.inference_mode()
def alternatives_ms(runner: Runner, program: Any, inputs: Sequence[torch.Tensor]) -> dict[str, float]:
    """Milliseconds of the kernels if compiled, and of fetching results as we do and into ordinary memory."""
    compiled, results = torch.compile(program), program(*inputs)
    calls = {
        "compiled_kernels_ms": lambda: compiled(*inputs),
        "fetch_ms": lambda: runner.fetch(results),
        "plain_fetch_ms": lambda: [part.float().cpu() for part in results],
    }
    return {name: _on_device(call, runner.device) * 1e3 for name, call in calls.items()}


@dataclass(frozen=True, slots=True)
class Roof:
    """What a device reaches: floating-point operations and bytes a second."""

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a program does in `seconds`: operations of its products, bytes that operators read and write."""

    flops: float
    bytes: float
    seconds: float

    def share(self, roof: Roof) -> float:
        """Time at the roofline ÷ time taken: the slower of the products and of the memory sets it."""
        return max(self.flops / roof.flops, self.bytes / roof.bytes) / self.seconds


def measure_roof(device: str, dtype: torch.dtype, size: int) -> Roof:
    """From a product of `size` × `size` matrices, and a copy of 16 times as many numbers."""
    matrix = torch.randn(size, size, device=device).to(dtype)
    source = torch.zeros(16 * size * size, device=device, dtype=dtype)
    target = torch.empty_like(source)
    product = _on_device(lambda: matrix @ matrix, device)
    copy = _on_device(lambda: target.copy_(source), device)
    return Roof(2 * size**3 / product, 2 * source.nbytes / copy)


def pair_pass(
    runner: Runner, artifact: Path, num: np.ndarray, cat: np.ndarray, user: np.ndarray, pair: np.ndarray
) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """The program of users × actions, and its inputs on the device."""
    actions = runner.keep(runner.place(load_program(artifact / ACTIONS)), num, cat)
    inputs = (*actions, runner.tensor(user), runner.tensor(pair))
    return runner.place(load_program(artifact / PAIRS)), inputs


def kernel_work(runner: Runner, program: Any, inputs: Sequence[torch.Tensor]) -> Work:
    """One pass on the device, without the copies to and from it."""
    with torch.inference_mode():
        traffic = _Traffic(program)
        traffic.run(*inputs)
        with FlopCounterMode(display=False) as counter:
            program(*inputs)
        seconds = _on_device(lambda: program(*inputs), runner.device)
    return Work(float(counter.get_total_flops()), float(traffic.bytes), seconds)


class _Traffic(torch.fx.Interpreter):
    """Counts what operators read and write; those that only look at memory in another way count nothing."""

    def __init__(self, program: Any) -> None:
        super().__init__(program)
        self.bytes = 0

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.op not in ("call_function", "call_method") or not isinstance(result, torch.Tensor):
            return result
        given = torch.utils._pytree.tree_leaves(self.fetch_args_kwargs_from_env(n))
        read = [value for value in given if isinstance(value, torch.Tensor)]
        own = result.untyped_storage().data_ptr()
        looked_at = any(v.untyped_storage().data_ptr() == own for v in read)
        if not looked_at or str(n.target).endswith("_"):
            self.bytes += result.nbytes + sum(v.nbytes for v in read)
        return result


def tokens_per_s(folder: Path, args: Args) -> tuple[float | None, str]:
    """Tokens a second of the embedded language model, or why there is none."""
    from qiance.strategy.prompts import Prompt
    from serve.generator.carried import ModelUnavailable
    from serve.generator.engine import TransformersEngine

    try:
        engine = TransformersEngine.load("embedded", folder / "weights")
    except ModelUnavailable as error:
        return None, str(error)
    schema = {
        "type": "object",
        "properties": {"headline": {"type": "string", "minLength": 60, "maxLength": 120}},
        "required": ["headline"],
        "additionalProperties": False,
    }
    prompts = [Prompt("Be brief.", f"Write a headline for tea number {n}.") for n in range(PROMPTS)]
    # Kernels are chosen and compiled on the first pass over each size of batch.
    engine.generate_json(prompts, schema, max_new_tokens=NEW_TOKENS, seed=args.seed)
    started = time.perf_counter()
    answers = engine.generate_json(prompts, schema, max_new_tokens=NEW_TOKENS, seed=args.seed)
    return sum(a.tokens for a in answers) / (time.perf_counter() - started), ""


def _timed(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    for call in calls.values():
        call()
        call()
    log(f"timing {', '.join(calls)}")
    return alternate(calls, repeats)


def _on_device(call: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Median seconds of `call`, its kernels finished."""

    def finished() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return median_of(_timed({"kernels": finished}, repeats)["kernels"])


if __name__ == "__main__":
    main()
