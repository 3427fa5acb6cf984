"""Training that is killed at any step ends with the model of a training that was not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from effect_cases import Planted, fit, killed_at, plant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.effect import ray_run
from training.effect.fit import Trained
from training.effect.runs import ROWS, TrainingBusyError, open_run
from training.effect.workers import PROGRESS

# 17 gradient steps in 3 epochs, with a checkpoint after every second one and after each epoch.
SETTINGS = {"epochs": 3, "batch_size": 256, "checkpoint_steps": 2}
STEPS = 17
# The whole job, as a command is: it kills itself at a step, or is killed from outside.
JOB = """
import sys
from pathlib import Path
from effect_cases import fit, kill_here, plant
workers, step, folder, cluster = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
if workers:
    import ray
    ray.init(address=cluster, log_to_driver=False)
else:
    kill_here([step], folder)
fit(plant(2_000), folder, workers=workers, epochs=3, batch_size=256, checkpoint_steps=2)
"""


@pytest.fixture(scope="module")
def small() -> Planted:
    return plant(2_000)


@pytest.fixture(scope="module")
def whole(small: Planted, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained in one go."""
    return fit(small, tmp_path_factory.mktemp("whole"), **SETTINGS)


class _StoppedError(Exception):
    pass


def _interrupted(small: Planted, folder: Path, step: int) -> None:
    """Train until gradient step `step` of this attempt, if it comes to that."""
    taken, real = 0, torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, *args: object) -> object:
        nonlocal taken
        if taken == step:
            raise _StoppedError
        taken += 1
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", counted)
        try:
            fit(small, folder, **SETTINGS)
        except _StoppedError:
            return


@given(st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=3))
@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stopped_anywhere_it_goes_on_to_the_same_model(
    small: Planted, whole: Trained, tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    for step in stops:
        _interrupted(small, folder, step)
    again = fit(small, folder, **SETTINGS)
    assert again.artifact.version == whole.artifact.version
    assert again.history == whole.history
    assert list((folder / "runs").iterdir()) == []


def test_what_was_done_is_not_done_again(small: Planted, tmp_path: Path) -> None:
    _interrupted(small, tmp_path, 13)
    (run,) = (tmp_path / "runs").iterdir()
    state = torch.load(run / "state.pt", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (2, 0)
    assert len(state["progress"]["history"]) == 2


def test_another_seed_does_not_go_on_from_it(small: Planted, whole: Trained, tmp_path: Path) -> None:
    _interrupted(small, tmp_path, 9)
    other = fit(small, tmp_path, **SETTINGS, seed=1)
    alone = fit(small, tmp_path / "alone", **SETTINGS, seed=1)
    assert other.artifact.version == alone.artifact.version != whole.artifact.version


def test_a_killed_process_goes_on_to_the_same_model(small: Planted, whole: Trained, tmp_path: Path) -> None:
    job = subprocess.run(_command(0, 11, tmp_path), env=_environment(), check=False, timeout=200)
    assert job.returncode == -9
    again = fit(small, tmp_path, **SETTINGS)
    assert again.artifact.version == whole.artifact.version
    assert again.history == whole.history


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    arrays = {"train_num": torch.zeros(2).numpy()}
    with open_run(tmp_path, {"seed": 0}, arrays) as run:
        assert (run / ROWS).exists()
        with (
            pytest.raises(TrainingBusyError, match="running in another process"),
            open_run(tmp_path, {"seed": 0}, arrays),
        ):
            pass
        with open_run(tmp_path, {"seed": 1}, arrays) as other:
            assert other != run
    assert not run.exists()


def test_a_run_that_nobody_went_on_with_is_removed(tmp_path: Path) -> None:
    arrays = {"train_num": torch.zeros(2).numpy()}
    for name, days in (("effect-old", 8), ("effect-new", 6)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - days * 86_400,) * 2)
    with open_run(tmp_path, {}, arrays):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["effect-new"]


@pytest.fixture(scope="module")
def by_two(small: Planted, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Trained:
    """Trained in one go by two workers."""
    return fit(small, tmp_path_factory.mktemp("by_two"), workers=2, **SETTINGS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("workers", "victim", "steps"), [(1, 0, (0, 16)), (1, 0, (3, 1, 4)), (2, 0, (12,)), (2, 1, (7, 5))]
)
def test_killed_workers_go_on_to_the_same_model(
    small: Planted,
    workers: int,
    victim: int,
    steps: tuple[int, ...],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected: Trained = request.getfixturevalue("whole" if workers == 1 else "by_two")
    monkeypatch.setattr(ray_run, "train_loop", killed_at(steps, victim, tmp_path))
    killed = fit(small, tmp_path, workers=workers, **SETTINGS)
    assert len(list(tmp_path.glob("killed-*"))) == len(steps)
    assert killed.artifact.version == expected.artifact.version
    assert killed.history == expected.history


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("workers", "epochs"), [(1, 1), (2, 2)])
def test_a_killed_job_on_ray_goes_on_to_the_same_model(
    small: Planted, workers: int, epochs: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import ray

    expected: Trained = request.getfixturevalue("whole" if workers == 1 else "by_two")
    cluster = ray.get_runtime_context().gcs_address
    job = subprocess.Popen(_command(workers, 0, tmp_path / "killed", cluster), env=_environment())
    deadline = time.monotonic() + 900
    while not _lines(tmp_path / "killed") >= epochs:
        assert job.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.kill()
    job.wait(timeout=10)
    again = fit(small, tmp_path / "killed", workers=workers, **SETTINGS)
    assert again.artifact.version == expected.artifact.version
    assert again.history == expected.history


def _lines(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob(f"runs/*/{PROGRESS}"))


def _command(workers: int, step: int, folder: Path, cluster: str = "") -> list[str]:
    return [sys.executable, "-c", JOB, str(workers), str(step), str(folder), cluster]


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}
