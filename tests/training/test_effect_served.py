"""What is exported computes what was trained, in parts and in whole, at any size."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from qiance.artifacts import EffectModel, write_artifact
from qiance.artifacts.effect import ENCODER, INFO, KIND, PROGRAM
from qiance.artifacts.runner import padded_size, padded_sizes
from qiance.features.columns import EFFECT_SCHEMA
from qiance.features.encoder import Encoder, NumericCode
from qiance.features.grid import GridColumns
from tests.artifacts.recorded_cases import record_here
from training.effect.export import effect_files
from training.effect.network import EffectNetwork, NetworkConfig, mean_factor
from training.effect.served import ServedActions, ServedNetwork, ServedPairs

TASKS = ("click", "conversion", "sales", "margin")


def network(
    hidden: tuple[int, ...] = (16, 8),
    tasks: tuple[str, ...] = TASKS,
    entire_space: bool = True,
    num_width: int = 9,
    cardinalities: tuple[int, ...] = (4, 7),
    heads: int = 3,
) -> EffectNetwork:
    """Weights of any size: nothing is near zero, so that no part can be left out unseen."""
    torch.manual_seed(0)
    rates = {task: 0.2 for task in ("click", "conversion") if task in tasks}
    config = NetworkConfig(
        num_width, cardinalities, tasks, entire_space, heads, hidden, rates, 900.0, 100.0, 50.0
    )
    found = EffectNetwork(config)
    for weight in found.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return found.eval()


def rows(count: int, width: int = 9, cardinalities: tuple[int, ...] = (4, 7)) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    cat = [torch.randint(0, size, (count,), generator=random) for size in cardinalities]
    return torch.randn(count, width, generator=random), torch.stack(cat, dim=1)


def served(net: EffectNetwork, num: torch.Tensor, cat: torch.Tensor) -> torch.Tensor:
    """Probabilities and money from the outputs that the loss reads, spelled out."""
    config, raw = net.config, dict(zip(net.config.tasks, net(num, cat).unbind(2), strict=True))
    found = {task: torch.sigmoid(raw[task]) for task in ("click", "conversion") if task in raw}
    if config.entire_space:
        found["conversion"] = found["click"] * found["conversion"]
    if "sales" in raw:
        found["sales"] = found["conversion"] * config.sales_scale * mean_factor(raw["sales"])
    if "margin" in raw:
        found["margin"] = found["conversion"] * (config.margin_centre + config.margin_scale * raw["margin"])
    return torch.stack([found[task] for task in config.tasks], dim=2)


def agrees(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the scale of each task (the last axis)."""
    scale = np.abs(expected).max(axis=tuple(range(expected.ndim - 1)))
    assert (np.abs(found - expected) <= tolerance * scale).all()


@pytest.mark.parametrize(
    ("hidden", "tasks", "entire_space"),
    [
        ((16,), TASKS, True),
        ((16, 8), TASKS, True),
        ((16, 8), TASKS, False),
        ((12, 8, 4), ("click",), False),
        ((16, 8), ("conversion", "sales", "margin"), False),
        ((16, 8), ("click", "conversion"), True),
    ],
)
def test_the_served_network_is_the_trained_one(
    hidden: tuple[int, ...], tasks: tuple[str, ...], entire_space: bool
) -> None:
    net = network(hidden, tasks, entire_space)
    num, cat = rows(40)
    with torch.no_grad():
        agrees(ServedNetwork(net)(num, cat).numpy(), served(net, num, cat).numpy())


@pytest.mark.parametrize("users", [0, 1, 3])
@pytest.mark.parametrize("hidden", [(16,), (16, 8, 4)])
def test_parts_are_the_whole(users: int, hidden: tuple[int, ...]) -> None:
    net, user, pair = network(hidden), (8, 0, 3), (5, 2)
    num, cat = rows(11)
    own, both = torch.randn(3, users), torch.randn(2, users, 11)
    alone = num.clone()
    alone[:, [*user, *pair]] = 0.0
    with torch.no_grad():
        first = ServedActions(net, user, pair)(alone, cat)
        tasks = ServedPairs(net, user, pair)(*first, own, both)
        found = torch.stack([task.view(3, users, 11) for task in tasks]).permute(2, 3, 1, 0)
        for u in range(users):
            row = num.clone()
            row[:, user], row[:, pair] = own[:, u], both[:, u].t()
            agrees(found[u].numpy(), served(net, row, cat).numpy())
    assert found.shape == (users, 11, 3, 4)


def encoder() -> Encoder:
    random = np.random.default_rng(0)
    flags = random.random(len(EFFECT_SCHEMA.numeric)) < 0.4
    codes = tuple(NumericCode(20.0, 15.0, bool(flag)) for flag in flags)
    return Encoder(EFFECT_SCHEMA, codes, (("email", "mailer"), ("soup", "coffee", "none")))


def write(root: Path, with_grid: bool = True) -> Path:
    """An effect model of decisions; without programs for users × actions, as they were before."""
    code = encoder()
    net = network((16, 8), TASKS, True, code.num_width, code.cardinalities)
    num, cat = rows(8, code.num_width, code.cardinalities)
    files = effect_files(net, code, num.numpy(), cat.numpy(), 1.2, {"click": 1.2})
    if not with_grid:
        info = root / "old.json"
        files[INFO](info)
        old = {key: value for key, value in json.loads(info.read_text()).items() if key != "grid"}
        files = {PROGRAM: files[PROGRAM], ENCODER: files[ENCODER]}
        files[INFO] = lambda path: path.write_text(json.dumps(old)) and None
    return write_artifact(
        root / "artifacts",
        KIND,
        files,
        metrics={},
        feature_service=EFFECT_SCHEMA.service,
        schema_hash=EFFECT_SCHEMA.hash,
        data_fingerprint="d",
    ).path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("served"))


def inputs(users: int, actions: int) -> tuple[np.ndarray, ...]:
    code, columns = encoder(), GridColumns.of(encoder())
    assert columns is not None
    num, cat = (x.numpy() for x in rows(actions, code.num_width, code.cardinalities))
    random = np.random.default_rng(2)
    user = random.normal(size=(len(columns.user), users)).astype(np.float32)
    pair = random.normal(size=(len(columns.pair), users, actions)).astype(np.float32)
    return num, cat, user, pair


def expected(model: EffectModel, users: int, actions: int) -> list[np.ndarray]:
    """Every task `[U, A, H]` of the plain program."""
    num, cat, user, pair = inputs(users, actions)
    columns = model.info.grid or GridColumns.of(model.encoder)
    assert columns is not None
    full = np.repeat(num[None], users, axis=0)
    full[:, :, list(columns.user)] = user.T[:, None]
    full[:, :, list(columns.pair)] = pair.transpose(1, 2, 0)
    drawn = model.predict_encoded(full.reshape(-1, num.shape[1]), np.tile(cat, (users, 1)))
    return [
        x.reshape(users, actions, model.heads)
        for x in (drawn.click, drawn.conversion, drawn.sales, drawn.margin)
    ]


def in_parts(model: EffectModel, users: int, actions: int) -> list[np.ndarray]:
    num, cat, user, pair = inputs(users, actions)
    assert model.info.grid is not None
    alone = num.copy()
    alone[:, [*model.info.grid.user, *model.info.grid.pair]] = 0.0
    prepared = model.prepare(alone, cat, model.info.grid)
    assert prepared is not None
    drawn = prepared.predict(user, pair)
    return [drawn.click, drawn.conversion, drawn.sales, drawn.margin]


# 5 × 700 rows take several passes, and the last is not full.
@pytest.mark.parametrize(("users", "actions"), [(1, 1), (1, 501), (5, 700), (2, 3000), (0, 4)])
def test_an_artifact_scores_users_by_actions_as_it_scores_rows(
    artifact: Path, users: int, actions: int
) -> None:
    model = EffectModel.load(artifact, EFFECT_SCHEMA)
    for found, whole in zip(in_parts(model, users, actions), expected(model, users, actions), strict=True):
        assert found.shape == (users, actions, 3)
        assert found.dtype == np.float32
        if users:
            assert np.abs(found - whole).max() <= 1e-5 * np.abs(whole).max()


def test_an_artifact_of_before_loads_and_says_that_it_takes_rows(artifact: Path, tmp_path: Path) -> None:
    old, new = EffectModel.load(write(tmp_path, with_grid=False)), EffectModel.load(artifact)
    num, cat, _, _ = inputs(1, 6)
    assert old.info.grid is None
    assert new.info.grid is not None
    assert old.prepare(num, cat, new.info.grid) is None
    np.testing.assert_array_equal(old.predict_encoded(num, cat).margin, new.predict_encoded(num, cat).margin)


def test_other_columns_than_it_was_exported_for_take_rows(artifact: Path) -> None:
    model = EffectModel.load(artifact)
    assert model.info.grid is not None
    num, cat, _, _ = inputs(1, 6)
    other = GridColumns(model.info.grid.user[1:], model.info.grid.pair)
    assert model.prepare(num, cat, other) is None


def test_bfloat16_is_close_and_float32_comes_out(artifact: Path) -> None:
    exact, rough = EffectModel.load(artifact), EffectModel.load(artifact, dtype="bfloat16")
    for found, whole in zip(in_parts(rough, 2, 50), in_parts(exact, 2, 50), strict=True):
        assert found.dtype == np.float32
        error = np.abs(found - whole).mean() / np.abs(whole).mean()
        assert 0 < error < 0.05


def test_threads_are_pinned_in_whichever_thread_predicts(artifact: Path) -> None:
    """Two workers with models of their own settings: neither undoes the other's."""
    models = [EffectModel.load(artifact, threads=count) for count in (1, 2)]
    barrier, seen, errors = threading.Barrier(2), {}, []

    def work(place: int) -> None:
        try:
            for _ in range(20):
                barrier.wait(timeout=30)
                in_parts(models[place], 1, 30)
                seen.setdefault(place, set()).add(torch.get_num_threads())
        except Exception as error:
            errors.append(error)
            barrier.abort()

    workers = [threading.Thread(target=work, args=(place,)) for place in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert seen == {0: {1}, 1: {2}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threads": 0}, "threads: 0 is not positive"),
        ({"device": "tpu"}, "device: 'tpu' is not one of cpu, cuda"),
        ({"dtype": "float16"}, "dtype: 'float16' is not one of float32, bfloat16"),
        ({"cuda_graphs": True}, "cuda_graphs: needs device cuda"),
    ],
)
def test_settings_that_do_not_fit_are_refused(artifact: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EffectModel.load(artifact, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_cuda_without_a_gpu_is_refused(artifact: Path) -> None:
    with pytest.raises(ValueError, match="device: 'cuda' was asked for and torch sees no GPU"):
        EffectModel.load(artifact, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_a_gpu_scores_as_the_processor_does(
    artifact: Path, graphs: bool, dtype: str, tolerance: float
) -> None:
    here = EffectModel.load(artifact)
    there = EffectModel.load(artifact, device="cuda", dtype=dtype, cuda_graphs=graphs)
    for users in (1, 4, 1, 3, 7, 0, 33, 5):  # the third call replays the first one's recording, 3 is padded
        for found, whole in zip(in_parts(there, users, 60), in_parts(here, users, 60), strict=True):
            assert found.shape == whole.shape
            assert np.abs(found - whole).max(initial=0.0) <= tolerance * np.abs(whole).max(initial=0.0)


def test_recorded_sizes_are_powers_of_two() -> None:
    assert [padded_size(users) for users in (0, 1, 2, 3, 4, 5, 32, 33)] == [1, 1, 2, 4, 4, 8, 32, 64]
    assert padded_sizes(1) == (1,)
    assert padded_sizes(32) == (1, 2, 4, 8, 16, 32)
    assert padded_sizes(33) == (1, 2, 4, 8, 16, 32, 64)


def test_a_recorded_pass_is_padded_and_gives_what_was_asked(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = EffectModel.load(artifact)
    recorded = record_here(monkeypatch)
    model = EffectModel.load(artifact)
    for users in (1, 3, 4, 0, 7, 2, 5, 1, 6):
        for found, whole in zip(in_parts(model, users, 60), in_parts(plain, users, 60), strict=True):
            assert found.shape == whole.shape == (users, 60, 3)
            assert np.abs(found - whole).max(initial=0.0) <= 1e-5 * np.abs(whole).max(initial=0.0)
    assert recorded == [(1, 60), (4, 60), (8, 60), (2, 60)]
    in_parts(model, 200, 60)  # in passes of 32 users: 2,048 rows are 34 of them
    assert recorded[4:] == [(32, 60)]


def test_recordings_that_are_used_are_kept(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = record_here(monkeypatch)
    model = EffectModel.load(artifact)
    for actions in range(2, 50):
        in_parts(model, 1, actions)
        in_parts(model, 1, 2)
    assert len(recorded) == 48
    in_parts(model, 1, 2)
    in_parts(model, 1, 49)
    assert len(recorded) == 48
    in_parts(model, 1, 3)
    assert recorded[48:] == [(1, 3)], "it was used longest ago"
