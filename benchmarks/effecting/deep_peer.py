"""DCN V2 of torch-rechub, run in an environment of its own: `python deep_peer.py IN.npz OUT.npz`.

IN: num `[n, d]` standardised, cat `[n, c]` codes, target `[n]`, part `[n]` (0 trains, 1 chooses, 2 judges),
and epochs, batch_size, seed. OUT: prediction of the judged rows, seconds of training, epochs gone through.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import DCNv2
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

PATIENCE = 4


def main(source: str, out: str) -> None:
    """Train, predict, write."""
    torch.set_num_threads(1)
    with np.load(source, allow_pickle=False) as stored:
        data = dict(stored)
    torch.manual_seed(int(data["seed"]))
    rows = {number: data["part"] == number for number in (0, 1, 2)}
    inputs = {number: _inputs(data, mask) for number, mask in rows.items()}
    model = DCNv2(_features(data), 2, {"dims": [64, 32], "dropout": 0.1, "activation": "relu"})
    train, valid, test = _loaders(data, rows, inputs)
    with tempfile.TemporaryDirectory() as folder:
        trainer = CTRTrainer(
            model,
            optimizer_params={"lr": 1e-3, "weight_decay": 1e-5},
            n_epoch=int(data["epochs"]),
            earlystop_patience=PATIENCE,
            model_path=folder,
        )
        started = time.perf_counter()
        epochs = _count_epochs(trainer)
        trainer.evaluate_fn = _inverse_log_loss
        trainer.fit(train, valid if rows[1].any() else None)
        seconds = time.perf_counter() - started
    if trainer.early_stopper.best_weights is not None:  # fit puts them back only where it stops early
        trainer.model.load_state_dict(trainer.early_stopper.best_weights)
    prediction = np.array(trainer.predict(trainer.model, test)) if rows[2].any() else np.empty(0)
    np.savez(out, prediction=prediction, seconds=seconds, epochs=len(epochs))


def _inverse_log_loss(target: Any, prediction: Any) -> float:
    """What it stops by: the larger the better, above 0. Its own choice, AUC, would not see calibration."""
    p = np.clip(np.asarray(prediction, dtype=np.float64), 1e-7, 1 - 1e-7)
    y = np.asarray(target, dtype=np.float64)
    return float(1 / -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def _count_epochs(trainer: Any) -> list[float]:
    done, one = list[float](), trainer.train_one_epoch

    def counted(*args: Any, **more: Any) -> float:
        loss = float(one(*args, **more))
        done.append(loss)
        return loss

    trainer.train_one_epoch = counted
    return done


def _inputs(data: dict[str, Any], mask: Any) -> dict[str, Any]:
    numbers = {f"n{k}": data["num"][mask, k].astype(np.float32) for k in range(data["num"].shape[1])}
    codes = {f"c{k}": data["cat"][mask, k].astype(np.int64) for k in range(data["cat"].shape[1])}
    return {**numbers, **codes}


def _features(data: dict[str, Any]) -> list[Any]:
    dense = [DenseFeature(f"n{k}") for k in range(data["num"].shape[1])]
    sparse = [
        SparseFeature(f"c{k}", vocab_size=int(data["cat"][:, k].max()) + 1, embed_dim=8)
        for k in range(data["cat"].shape[1])
    ]
    return dense + sparse


def _loaders(data: dict[str, Any], rows: dict[int, Any], inputs: dict[int, Any]) -> Any:
    target = {number: data["target"][mask].astype(np.float32) for number, mask in rows.items()}
    return DataGenerator(inputs[0], target[0]).generate_dataloader(
        x_val=inputs[1],
        y_val=target[1],
        x_test=inputs[2],
        y_test=target[2],
        batch_size=int(data["batch_size"]),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
