"""Training: planted truth is learned, the same seed gives the same model, faults are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from effect_cases import LABELS, Planted, fit, killed_at, listening, plant

from qiance.artifacts import ArtifactError, EffectModel
from qiance.evaluate.prediction import auc
from qiance.features.projection import pack_vector, vector_column
from qiance.features.schema import FeatureSchema
from training.effect import ray_run
from training.effect.baselines import compare
from training.effect.fit import Trained, TrainSettings, train_effect
from training.effect.split import Split, split_by_unit


def test_learns_what_was_planted(planted: Planted, trained: Trained) -> None:
    model = EffectModel.load(trained.artifact.path, expect=planted.schema)
    test = planted.split.test
    rows = planted.table.filter(pa.array(test))
    draws = model.predict(planted.schema.columns(rows))
    assert draws.click.shape == draws.margin.shape == (test.sum(), 4)
    assert draws.click.dtype == np.float32
    truth = planted.click[test]
    assert np.corrcoef(draws.click.mean(axis=1), truth)[0, 1] > 0.85
    assert np.corrcoef(draws.conversion.mean(axis=1), planted.conversion[test])[0, 1] > 0.8
    oracle = auc(rows["click"].to_numpy(zero_copy_only=False), truth)
    assert trained.metrics["click_auc"] > oracle - 0.03
    assert np.all(draws.conversion <= draws.click)
    assert model.info.entire_space
    assert np.corrcoef(draws.sales.mean(axis=1), planted.sales[test])[0, 1] > 0.8
    assert draws.sales.mean() == pytest.approx(planted.sales[test].mean(), rel=0.12)


def test_beats_the_linear_models_where_truth_is_not_linear(planted: Planted, trained: Trained) -> None:
    model = EffectModel.load(trained.artifact.path)
    scores = {s.name: s for s in compare(planted.table, planted.schema, "click", planted.split, model)}
    assert list(scores) == [
        "population mean", "linear regression", "64-32-1 network", "logistic regression", "LightGBM",
        "effect model",
    ]  # fmt: skip
    ours = scores["effect model"]
    for name in ("population mean", "linear regression", "logistic regression"):
        assert ours.auc > scores[name].auc + 0.05
        assert ours.log_loss < scores[name].log_loss
    assert ours.ne < scores["LightGBM"].ne + 0.03
    assert scores["population mean"].ne == pytest.approx(1, abs=0.01)
    assert scores["linear regression"].note.startswith("click = ")
    assert sum(row.n for row in ours.calibration) == ours.n_test == planted.split.test.sum()


def test_money_baselines_have_no_probability_scores(planted: Planted, trained: Trained) -> None:
    model = EffectModel.load(trained.artifact.path)
    scores = compare(planted.table, planted.schema, "sales", planted.split, model)
    assert [s.name for s in scores][-1] == "effect model"
    assert all(s.log_loss is None and s.auc is None and s.calibration == () for s in scores)
    assert scores[-1].rmse < scores[0].rmse


def test_metrics_and_history_tell_the_run(planted: Planted, trained: Trained) -> None:
    assert [row["epoch"] for row in trained.history] == list(range(len(trained.history)))
    best = min(trained.history, key=lambda row: row["valid_loss"])
    assert trained.metrics["best_epoch"] == best["epoch"]
    assert trained.metrics["width_scale"] >= 1
    groups = int(planted.split.valid.sum()) // 500
    assert trained.metrics["width_groups"] == groups
    assert trained.metrics["width_enough"] == float(groups >= 9)
    info = EffectModel.load(trained.artifact.path).info
    assert (info.width_groups, info.width.doubt is None) == (groups, groups >= 9)
    for task in LABELS:
        assert trained.metrics[f"{task}_coverage_90"] >= trained.metrics[f"{task}_coverage_90_raw"]
    assert dict(trained.artifact.manifest.metrics) == dict(trained.metrics)


def test_the_version_hangs_on_data_and_seed_alone(tmp_path: Path) -> None:
    first, second = plant(4_000, seed=1), plant(4_000, seed=2)
    once, again = fit(first, tmp_path / "a", epochs=2), fit(first, tmp_path / "b", epochs=2)
    assert once.artifact.version == again.artifact.version
    assert once.history == again.history
    others = [fit(second, tmp_path, epochs=1), fit(first, tmp_path, epochs=1, seed=1)]
    assert len({once.artifact.version, *(other.artifact.version for other in others)}) == 3


def test_no_run_files_are_left(trained: Trained) -> None:
    runs = trained.artifact.path.parent.parent / "runs"
    assert list(runs.iterdir()) == []


def test_without_ray_it_says_what_to_do(planted: Planted, tmp_path: Path) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("another test of this session holds Ray")
    with pytest.raises(RuntimeError, match=r"call ray\.init before training"):
        fit(planted, tmp_path, workers=1)


def _assert_loopback(sockets: set[tuple[str, str]]) -> None:
    assert any("RayTrainWorker" in process for process, _ in sockets), "the workers were not seen"
    assert [s for s in sockets if not s[1].removeprefix("::ffff:").startswith("127.") and s[1] != "::1"] == []


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts workers twice, which takes minutes on a busy machine
@pytest.mark.usefixtures("ray_cluster")
def test_ray_train_with_a_killed_worker_gives_the_model_that_this_process_gives(
    planted: Planted, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_run, "train_loop", killed_at([20], 0, tmp_path))
    told: list[tuple[float, str]] = []
    with listening() as sockets:
        on_ray = train_effect(
            planted.table,
            planted.schema,
            labels=LABELS,
            split=planted.split,
            settings=TrainSettings(workers=1, heads=4),
            out=tmp_path / "artifacts",
            storage=tmp_path / "runs",
            data_fingerprint="planted",
            units=planted.users,
            progress=lambda share, text: told.append((share, text)),
        )
    _assert_loopback(sockets)
    assert (tmp_path / "killed-0").exists()
    assert on_ray.history == trained.history
    assert on_ray.artifact.version == trained.artifact.version
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert any("epoch" in text for _, text in told)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_two_ray_workers_learn_together(planted: Planted, trained: Trained, tmp_path: Path) -> None:
    with listening() as sockets:
        both = fit(planted, tmp_path, workers=2)
    _assert_loopback(sockets)
    assert both.metrics["click_auc"] == pytest.approx(trained.metrics["click_auc"], abs=0.03)


def test_click_only_leaves_the_rest_unknown(tmp_path: Path) -> None:
    planted = plant(3_000)
    only = train_effect(
        planted.table,
        planted.schema,
        labels=["click"],
        split=planted.split,
        settings=TrainSettings(workers=0, epochs=1, heads=2),
        out=tmp_path,
        storage=tmp_path / "runs",
        data_fingerprint="clicks",
    )
    model = EffectModel.load(only.artifact.path)
    draws = model.predict(planted.schema.columns(planted.table.slice(0, 5)))
    assert model.tasks == ("click",)
    assert np.isfinite(draws.click).all()
    assert np.isnan(draws.conversion).all()
    assert np.isnan(draws.sales).all()


def test_conversions_without_click_get_their_own_head(tmp_path: Path) -> None:
    planted = plant(4_000)
    organic = np.random.default_rng(5).random(4_000) < 0.2
    table = planted.table.set_column(
        planted.table.column_names.index("conversion"), "conversion", pa.array(organic)
    )
    trained = train_effect(
        table,
        planted.schema,
        labels=["click", "conversion"],
        split=planted.split,
        settings=TrainSettings(workers=0, epochs=2, heads=2),
        out=tmp_path,
        storage=tmp_path / "runs",
        data_fingerprint="organic",
    )
    model = EffectModel.load(trained.artifact.path)
    assert not model.info.entire_space
    draws = model.predict(planted.schema.columns(table))
    assert draws.conversion.mean() == pytest.approx(0.2, abs=0.03)


def test_loading_for_another_schema_names_the_feature(planted: Planted, trained: Trained) -> None:
    other = FeatureSchema("planted", (*planted.schema.numeric, "recency"), planted.schema.categorical)
    with pytest.raises(ArtifactError, match="numeric feature 'recency' is missing"):
        EffectModel.load(trained.artifact.path, expect=other)


@pytest.mark.parametrize("components", [0, 2])
def test_what_words_mean_is_learned_from_their_vectors(components: int, tmp_path: Path) -> None:
    """Ten texts that look the same in every number; half of them are clicked three times as often."""
    random = np.random.default_rng(3)
    warm = np.arange(10) % 2
    vectors = [pack_vector(np.append(3.0 * w, random.normal(size=7))) for w in warm]
    text, users = random.integers(0, 10, 4_000), np.arange(4_000) // 4
    shown = np.array(vectors, dtype=object)[text]
    click = random.random(4_000) < np.where(warm[text], 0.45, 0.15)
    planted = pa.table({"x": random.normal(size=4_000), "click": click, "text": vector_column(shown)})
    schema = FeatureSchema("texts", ("x",), vectors=("text",))
    trained = train_effect(
        planted,
        schema,
        labels=["click"],
        split=split_by_unit(users, 0),
        settings=TrainSettings(workers=0, epochs=8, heads=2, text_components=components),
        out=tmp_path,
        storage=tmp_path / "runs",
        data_fingerprint="texts",
        units=users,
    )
    model = EffectModel.load(trained.artifact.path, expect=schema)
    assert model.encoder.reads_vectors == bool(components)
    said = model.predict({"x": np.zeros(10), "text": np.array(vectors, dtype=object)}).click.mean(axis=1)
    apart = said[warm == 1].mean() - said[warm == 0].mean()
    assert apart > 0.15 if components else abs(apart) < 1e-6
    # A new text is read by what it means too.
    new = np.array([pack_vector(np.append(w, np.zeros(7))) for w in (0.0, 3.0)], dtype=object)
    cold, hot = model.predict({"x": np.zeros(2), "text": new}).click.mean(axis=1)
    assert hot - cold > 0.1 if components else hot == cold
    names = [score.name for score in compare(planted, schema, "click", split_by_unit(users, 0), model)]
    assert names[-1] == "effect model", "baselines read them too"


def test_a_model_from_before_vectors_is_refused(planted: Planted, trained: Trained) -> None:
    now = FeatureSchema("planted", planted.schema.numeric, planted.schema.categorical, ("text",))
    with pytest.raises(ArtifactError, match=r"vector feature 'text' is missing; train it again"):
        EffectModel.load(trained.artifact.path, expect=now)


def _with(table: pa.Table, name: str, row: int, value: float) -> pa.Table:
    values = table[name].to_numpy(zero_copy_only=False).astype(float)
    values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "labels", "message"),
    [
        (lambda t: t.drop_columns(["x3"]), LABELS, "column 'x3' is missing"),
        (lambda t: t.drop_columns(["sales"]), LABELS, "label 'sales': the table has no such column"),
        (lambda t: _with(t, "click", 7, 2.0), LABELS, "label 'click': value 2 at row 7 is neither 0 nor 1"),
        (lambda t: _with(t, "sales", 3, np.nan), LABELS, "label 'sales': value nan at row 3"),
        (lambda t: t, ["sales"], "label 'sales' needs label 'conversion'"),
        (lambda t: t, ["clicks"], r"labels: \['clicks'\]; choose from click, conversion"),
        (lambda t: t, [], "labels: none given"),
        (lambda t: t.slice(0, 100), LABELS, "split: has 2000 rows where the table has 100"),
    ],
)
def test_bad_tables_are_refused(change, labels, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    planted = plant(2_000)
    with pytest.raises(ValueError, match=message):
        train_effect(
            change(planted.table),
            planted.schema,
            labels=labels,
            split=planted.split,
            settings=TrainSettings(workers=0),
            out=tmp_path,
            storage=tmp_path,
            data_fingerprint="bad",
        )


def test_money_without_conversion_is_refused(tmp_path: Path) -> None:
    planted = plant(2_000)
    row = int(np.argmin(planted.table["conversion"].to_numpy(zero_copy_only=False)))
    bad = replace(planted, table=_with(planted.table, "sales", row, 500.0))
    with pytest.raises(ValueError, match=f"'sales': value 500 at row {row} comes without a conversion"):
        fit(bad, tmp_path)


def test_a_label_that_never_happens_is_refused(tmp_path: Path) -> None:
    planted = plant(2_000)
    quiet = planted.table.set_column(
        planted.table.column_names.index("click"), "click", pa.array(np.zeros(2_000))
    )
    with pytest.raises(ValueError, match="label 'click': is 0 in all"):
        train_effect(
            quiet,
            planted.schema,
            labels=["click"],
            split=planted.split,
            settings=TrainSettings(workers=0),
            out=tmp_path,
            storage=tmp_path,
            data_fingerprint="quiet",
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "settings.epochs: 0 is not positive"),
        ({"workers": -1}, "settings.workers: -1 is negative"),
        ({"hidden": ()}, r"settings.hidden: \(\)"),
        ({"learning_rate": 2.0}, "settings.learning_rate: 2.0 is outside"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)  # type: ignore[arg-type]


def test_a_split_that_overlaps_is_refused() -> None:
    mask = np.array([True, False, False])
    with pytest.raises(ValueError, match="row 0 is in more than one part"):
        Split(mask, mask, ~mask)
