"""One step of tuning on Ray Train: a low-rank adapter learns to imitate, or to prefer.

The losses are trl's: cross entropy of the answers, and direct preference optimisation (Rafailov et al. 2023)
against the adapter as it was before the step. One worker: adapters of these models fit one device.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qiance.strategy.prompts import Prompt
from training.writer.drafts import Pair
from training.writer.settings import Tell, WriterSettings

MOST_TOKENS = 512
_POLL_S = 0.5


def imitation_rows(answers: Sequence[tuple[Prompt, str]]) -> list[dict[str, Any]]:
    """As trl's SFTTrainer takes them."""
    return [{"prompt": prompt.messages(), "completion": _said(text)} for prompt, text in answers]


def preference_rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """As trl's DPOTrainer takes them."""
    return [
        {"prompt": one.prompt.messages(), "chosen": _said(one.chosen), "rejected": _said(one.rejected)}
        for one in pairs
    ]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def fit_adapter(
    rows: Sequence[Mapping[str, Any]],
    model: str,
    adapter: Path | None,
    out: Path,
    settings: WriterSettings,
    tell: Tell,
) -> Mapping[str, float]:
    """Tune `adapter`, or a new one where it is None, of the weights at `model` on `rows`.

    Rows with `chosen` are preferences, others are imitated. Writes peft's folder `out`, and returns the mean
    loss. Raises RuntimeError when Ray is not running.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    from training.effect.ray_run import own_interrupt, ray_train_defaults
    from training.effect.rendezvous import torch_config

    if not ray.is_initialized():
        raise RuntimeError("Ray is not running: call ray.init before training")
    gpu = float(ray.cluster_resources().get("GPU", 0)) >= 1
    with tempfile.TemporaryDirectory(prefix="qiance-writer-") as folder:
        progress = Path(folder) / "progress.jsonl"
        config = {
            "rows": [dict(row) for row in rows],
            "model": model,
            "adapter": None if adapter is None else str(adapter.resolve()),
            "progress": str(progress),
            "settings": settings,
        }
        trainer = TorchTrainer(
            step_loop,
            train_loop_config=config,
            torch_config=torch_config(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, use_gpu=gpu, resources_per_worker={"CPU": settings.cpus}
            ),
            run_config=ray.train.RunConfig(
                name="writer",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=1),
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            ),
        )
        with _followed(progress, tell), own_interrupt(), ray_train_defaults():
            result = trainer.fit()
        if result.checkpoint is None or result.metrics is None:
            raise RuntimeError("tuning ended without an adapter")
        with result.checkpoint.as_directory() as saved:
            shutil.copytree(saved, out, dirs_exist_ok=True)
        return {"loss": float(result.metrics["loss"])}


def step_loop(config: Mapping[str, Any]) -> None:
    """What the worker does."""
    import ray.train
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = {"local_files_only": Path(config["model"]).is_dir(), "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(config["model"], **local)
    network = AutoModelForCausalLM.from_pretrained(
        config["model"], dtype="auto", use_safetensors=True, **local
    )
    with tempfile.TemporaryDirectory(prefix="qiance-writer-") as folder:
        trainer = _trainer(network, tokenizer, config, folder)
        loss = trainer.train().training_loss
        adapter = Path(folder) / "adapter"
        # The copy that preferences are measured against is called `ref`; it is not kept.
        trainer.model.save_pretrained(adapter, selected_adapters=["default"])
        ray.train.report({"loss": loss}, checkpoint=ray.train.Checkpoint.from_directory(adapter))


def _trainer(network: Any, tokenizer: Any, config: Mapping[str, Any], folder: str) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    settings: WriterSettings = config["settings"]
    rows = config["rows"]
    given = {
        "model": _with_adapter(network, config["adapter"], settings),
        "processing_class": tokenizer,
        "train_dataset": Dataset.from_list(rows),
        "callbacks": [_progress(config["progress"])],
    }
    if "chosen" in rows[0]:
        own = _arguments(settings, settings.preference_rate, settings.preference_epochs, folder)
        return DPOTrainer(args=DPOConfig(beta=settings.beta, **own), **given)
    own = _arguments(settings, settings.imitation_rate, settings.imitation_epochs, folder)
    return SFTTrainer(args=SFTConfig(**own), **given)


def _with_adapter(network: Any, adapter: str | None, settings: WriterSettings) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if adapter is not None:
        return PeftModel.from_pretrained(network, adapter, is_trainable=True, local_files_only=True)
    low_rank = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(network, low_rank)


def _arguments(settings: WriterSettings, rate: float, epochs: int, folder: str) -> dict[str, Any]:
    import torch

    return {
        "output_dir": folder,
        "per_device_train_batch_size": settings.batch,
        "num_train_epochs": epochs,
        "learning_rate": rate,
        "lr_scheduler_type": "linear",
        "max_length": MOST_TOKENS,
        "activation_checkpointing": False,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": settings.seed,
    }


def _progress(path: str) -> Any:
    """Writes a line per step: the driver shows them."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                line = {"step": state.global_step, "of": state.max_steps, "loss": logs["loss"]}
                with Path(path).open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")

    return Progress()


@contextmanager
def _followed(path: Path, tell: Tell) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        told = 0
        while not done.wait(_POLL_S):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
            if len(lines) > told:
                last, told = json.loads(lines[-1]), len(lines)
                tell(
                    last["step"] / last["of"], f"step {last['step']} of {last['of']}: loss {last['loss']:.4f}"
                )

    watcher = threading.Thread(target=watch, name="writer-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
