"""Calibration by segment: fitted on unseen users, applied inside the programs; sampling is undone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from effect_cases import Planted, plant
from hypothesis import given, settings
from hypothesis import strategies as st
from test_effect_served import encoder, expected, in_parts, inputs, network, rows

from qiance.artifacts import EffectModel, write_artifact
from qiance.artifacts.effect import INFO, KIND, OTHER, TASKS, Calibration
from qiance.artifacts.width import WidthScale
from qiance.evaluate.calibration import Calibrator
from qiance.evaluate.prediction import ece, ece_floor
from qiance.features.columns import EFFECT_SCHEMA
from training.effect.calibrate import cross_calibrated, fit_calibration, segment_feature, segment_report
from training.effect.export import effect_files
from training.effect.fit import Trained, TrainSettings, train_effect
from training.effect.sampling import Sampling, choose_sampling
from training.effect.served import Curves, ServedNetwork
from training.effect.split import split_by_unit

CALIBRATION = Calibration(
    "channel",
    {
        "click": Calibrator(0.8, 1.3, -0.2, {"email": 0.4, "mailer": -0.3, OTHER: 0.1}),
        "conversion": Calibrator(1.2, 0.7, 0.3, {"email": -0.5}),
    },
)


def write(root: Path, calibration: Calibration | None, width: WidthScale | None = None) -> EffectModel:
    code = encoder()
    net = network((16, 8), TASKS, True, code.num_width, code.cardinalities)
    num, cat = rows(8, code.num_width, code.cardinalities)
    files = effect_files(net, code, num.numpy(), cat.numpy(), 1.2, {"click": 1.2}, calibration, width)
    artifact = write_artifact(
        root,
        KIND,
        files,
        metrics={},
        feature_service=EFFECT_SCHEMA.service,
        schema_hash=EFFECT_SCHEMA.hash,
        data_fingerprint="d",
    )
    return EffectModel.load(artifact.path, EFFECT_SCHEMA)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[EffectModel, EffectModel, EffectModel]:
    """Of the same network: as it is, calibrated by channel, calibrated alike everywhere."""
    root = tmp_path_factory.mktemp("calibrated")
    alike = Calibration(None, {task: Calibrator(c.a, c.b, c.c) for task, c in CALIBRATION.tasks.items()})
    return write(root, None), write(root, CALIBRATION), write(root, alike)


@pytest.mark.parametrize("which", [1, 2])
def test_the_programs_correct_as_the_calibrator_does(models: tuple[EffectModel, ...], which: int) -> None:
    plain, model = models[0], models[which]
    assert model.info.calibration is not None
    num, cat, _, _ = inputs(1, 300)
    names = np.array([OTHER, "email", "mailer"])[cat[:, 0]] if which == 1 else None
    before, after = plain.predict_encoded(num, cat), model.predict_encoded(num, cat)
    correct = model.info.calibration.tasks
    click = correct["click"].apply(before.click, names)
    conversion = click * correct["conversion"].apply(before.conversion / before.click, names)
    np.testing.assert_allclose(after.click, click, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(after.conversion, conversion, rtol=2e-5, atol=1e-5)
    likely = before.conversion > 1e-4
    ratio = conversion[likely] / before.conversion[likely]
    np.testing.assert_allclose(after.sales[likely], before.sales[likely] * ratio, rtol=1e-3)
    np.testing.assert_allclose(after.margin[likely], before.margin[likely] * ratio, rtol=1e-3)
    assert np.abs(after.click - before.click).max() > 0.02


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize(("users", "actions"), [(1, 1), (5, 700), (0, 4)])
def test_users_by_actions_are_corrected_as_rows_are(
    models: tuple[EffectModel, ...], which: int, users: int, actions: int
) -> None:
    model = models[which]
    for found, whole in zip(in_parts(model, users, actions), expected(model, users, actions), strict=True):
        assert found.shape == (users, actions, 3)
        if users:
            assert np.abs(found - whole).max() <= 1e-5 * np.abs(whole).max()


def test_it_is_read_back_and_older_models_have_none(models: tuple[EffectModel, ...]) -> None:
    assert models[1].info.calibration == CALIBRATION
    assert models[0].info.calibration is None
    old = json.loads((models[0].artifact.path / INFO).read_text())
    del old["calibration"]
    assert type(models[0].info).from_dict(old) == models[0].info


def test_rows_are_as_wide_as_their_segment(tmp_path: Path, models: tuple[EffectModel, ...]) -> None:
    width = WidthScale(1.2, {"email": 3.0, OTHER: 2.0}, 12)
    model = write(tmp_path, CALIBRATION, width)
    assert model.info.width == width
    cat = inputs(1, 300)[1]
    expected = np.array([2.0, 3.0, 1.2])[cat[:, 0]]
    np.testing.assert_array_equal(model.scales_of(cat), expected)
    np.testing.assert_array_equal(models[0].scales_of(cat), 1.2)
    np.testing.assert_array_equal(models[2].scales_of(cat), 1.2)


@given(
    st.lists(st.floats(0.0, 5.0), min_size=4, max_size=4),
    st.lists(st.floats(-30.0, 30.0), min_size=6, max_size=6),
    st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_corrected_chances_are_chances_and_nobody_buys_without_a_click(
    slopes: list[float], offsets: list[float], entire_space: bool
) -> None:
    net = network((8,), TASKS, entire_space)
    curves = Curves(
        {"click": (slopes[0], slopes[1]), "conversion": (slopes[2], slopes[3])},
        torch.tensor(offsets).view(3, 2).repeat(2, 1),
        0,
    )
    num, cat = rows(50)
    with torch.no_grad():
        click, conversion, sales, margin = ServedNetwork(net, curves)(num * 5, cat).unbind(2)
    for chance in (click, conversion):
        assert ((chance >= 0) & (chance <= 1)).all()
    assert torch.isfinite(sales).all()
    assert torch.isfinite(margin).all()
    assert not entire_space or (conversion <= click).all()


def _off(segments: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Predictions that are too high in one segment and too low in the other."""
    odds = p / (1 - p) * np.where(segments == "email", 3.0, 0.4)
    return odds / (1 + odds)


def test_segments_are_mended_on_users_that_were_not_fitted() -> None:
    random = np.random.default_rng(0)
    n, segments = 16_000, np.tile(["email", "display"], 8_000)
    p = 1 / (1 + np.exp(-random.normal(-1.5, 1.0, n)))
    y = {"click": (random.random(n) < p).astype(float)}
    draws = {"click": np.repeat(_off(segments, p)[:, None], 4, axis=1).astype(np.float32)}
    users = np.arange(n) // 4
    first = np.arange(n) < n // 2
    calibration = fit_calibration(
        {"click": draws["click"][first]}, {"click": y["click"][first]}, segments[first], "channel", False
    )
    after = {"click": calibration.tasks["click"].apply(draws["click"][~first], segments[~first])}
    rest = {"click": draws["click"][~first]}, {"click": y["click"][~first]}
    told = segment_report(rest[0], after, rest[1], segments[~first])
    assert [(one.segment, one.rows) for one in told] == [("display", 4_000), ("email", 4_000)]
    for one in told:
        assert one.ece_before > 0.05
        assert one.ece_after < 0.02
        assert one.after == pytest.approx(one.observed, abs=0.02)
    crossed = cross_calibrated(draws, y, users, segments, False, 0)["click"].mean(axis=1)
    assert ece(y["click"], crossed) < ece_floor(crossed) * 1.2


def test_cross_fitting_does_not_use_the_users_own_outcome() -> None:
    """Outcomes of one user turned over leave his own correction as it was."""
    random = np.random.default_rng(1)
    p = random.uniform(0.05, 0.6, 600)
    y, users = (random.random(600) < p).astype(float), np.arange(600) // 3
    draws = {"click": np.repeat(p[:, None], 2, axis=1).astype(np.float32)}
    mine = users == 17
    turned = np.where(mine, 1 - y, y)
    once, again = (
        cross_calibrated(draws, {"click": labels}, users, None, False, 0)["click"] for labels in (y, turned)
    )
    np.testing.assert_array_equal(once[mine], again[mine])
    assert (once[~mine] != again[~mine]).any()


def test_a_trained_model_reports_and_stores_it(planted: Planted, trained: Trained) -> None:
    model = EffectModel.load(trained.artifact.path)
    calibration = model.info.calibration
    assert calibration is not None
    assert calibration.segment == "channel"
    assert set(calibration.tasks["click"].offsets) <= {OTHER, "email", "display", "mailer"}
    assert {one.segment for one in trained.segments} == {"email", "display", "mailer"}
    for one in trained.segments:
        assert trained.metrics[f"{one.task}_ece/{one.segment}"] == one.ece_after
    assert trained.metrics["click_ece"] <= trained.metrics["click_ece_uncalibrated"] + 0.005
    draws = model.predict(planted.schema.columns(planted.table.filter(pa.array(planted.split.test))))
    assert (draws.conversion <= draws.click).all()


def test_the_segment_is_the_arm_or_the_first_feature_or_the_one_asked_for(planted: Planted) -> None:
    assert segment_feature(planted.schema, None) == "channel"
    assert segment_feature(planted.schema, "item") == "item"
    with pytest.raises(ValueError, match="'shop' is not a categorical feature; there are: channel, item"):
        segment_feature(planted.schema, "shop")


# Sampling of negatives


@given(st.floats(0.01, 1.0), st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=30)
def test_the_shift_is_the_formula(share: float, p: float) -> None:
    net = network((8,), ("click",), False)
    before = net.bias.detach().clone()
    Sampling(share, ("click",), np.ones(1, dtype=bool)).correct(net)
    shift = float((net.bias.detach() - before)[0, 0])
    corrected = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + shift)))
    assert corrected == pytest.approx(p / (p + (1 - p) / share), rel=1e-4)


def test_every_response_is_kept_and_as_many_others_as_asked_for() -> None:
    random = np.random.default_rng(0)
    labels = {"click": (random.random(50_000) < 0.02).astype(float)}
    train = random.random(50_000) < 0.7
    sampling = choose_sampling(labels, train, 5.0, seed=3)
    assert sampling is not None
    kept = sampling.keep(train, labels)
    assert not (kept & ~train).any()
    events = (labels["click"] > 0) & train
    assert kept[events].all()
    assert (kept & ~events).sum() / events.sum() == pytest.approx(5.0, rel=0.1)
    assert choose_sampling(labels, train, 1_000.0, 3) is None, "there are not as many"
    assert choose_sampling(labels, train, None, 3) is None


def test_a_row_kept_for_one_response_is_hidden_from_the_other() -> None:
    labels = {"click": np.array([1.0, 0, 0, 1, 0]), "conversion": np.array([0.0, 1, 0, 1, 0])}
    sampling = Sampling(0.5, ("click", "conversion"), np.array([False, False, False, False, True]))
    every = np.ones(5, dtype=bool)
    assert sampling.keep(every, labels).tolist() == [True, True, False, True, True]
    hidden = sampling.hide(labels)
    np.testing.assert_array_equal(hidden["click"][[0, 1, 3, 4]], [1, np.nan, 1, 0])
    np.testing.assert_array_equal(hidden["conversion"][[0, 1, 3, 4]], [np.nan, 1, 1, 0])


@pytest.mark.parametrize("conversions", ["none", "after clicks", "also without"])
def test_predictions_of_a_model_trained_on_a_sample_are_calibrated(conversions: str, tmp_path: Path) -> None:
    n, random = 24_000, np.random.default_rng(2)
    planted = plant(n, seed=2)
    chances = {"click": 0.12 * planted.click}
    happened = {"click": random.random(n) < chances["click"]}
    if conversions == "after clicks":
        happened["conversion"] = happened["click"] & (random.random(n) < planted.conversion / planted.click)
    elif conversions == "also without":
        chances["conversion"] = 0.2 * planted.conversion
        happened["conversion"] = random.random(n) < chances["conversion"]
    table = planted.table.select(planted.schema.names)
    for name, values in happened.items():
        table = table.append_column(name, pa.array(values))
    split = split_by_unit(planted.users, 0)
    trained = train_effect(
        table,
        planted.schema,
        labels=list(happened),
        split=split,
        settings=TrainSettings(workers=0, heads=3, epochs=6, negative_ratio=3.0, batch_size=128),
        out=tmp_path,
        storage=tmp_path / "runs",
        data_fingerprint="rare",
        units=planted.users,
    )
    assert trained.metrics["train_rows"] < 0.35 * split.train.sum()
    assert trained.metrics["negatives_kept"] < 0.35
    model = EffectModel.load(trained.artifact.path)
    draws = model.predict(planted.schema.columns(table.filter(pa.array(split.test))))
    for name, truth in chances.items():
        p = getattr(draws, name).mean(axis=1, dtype=np.float64)
        assert p.mean() == pytest.approx(truth[split.test].mean(), rel=0.2)
        assert ece(happened[name][split.test].astype(float), p) < ece_floor(p) * 1.5
        # Not by calibration alone: a sample's own rates are some three times too high.
        assert trained.metrics[f"{name}_ece_uncalibrated"] < 0.02


def test_a_ratio_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="negative_ratio: -1 is not positive"):
        TrainSettings(negative_ratio=-1)
