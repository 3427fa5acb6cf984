"""`qiance train planning-sweep`: many trainings of a policy by Ray Tune, and the best of them judged anew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from qiance.cli.sweep_options import MlflowOption, ResumeOption, SeedOption, WorkersOption
from qiance.cli.train_planning import (
    DataOption,
    EnvironmentOption,
    WorldOption,
    kept_sentence,
    returns_table,
    task_arguments,
)

if TYPE_CHECKING:
    from rllib.plan_algorithms import PlanningSettings
    from rllib.policies import Network
    from rllib.tasks import Task
    from training.tune.engine import SweepResult
    from training.tune.experiment import Experiment
    from training.tune.outcome import Outcome

POLICY, SUMMARY, PAGE = "policy.npz", "sweep.json", "sweep.html"
METRIC = "return"
Tell = Callable[[float, str], None]


def planning_sweep(
    environment: EnvironmentOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the sweep; it goes on where it was.")],
    data: DataOption = None,
    world: WorldOption = None,
    space: Annotated[
        Path | None,
        typer.Option(help="Search space (YAML); see docs/planning.md. Default: the packaged one."),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Trials in all; more of them may be asked for later.")
    ] = 12,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Of a trial at ENVS; default: 100, for sales 60.")
    ] = None,
    envs: Annotated[
        int | None, typer.Option(min=1, help="Episodes side by side; default: 256, for sales 2,000.")
    ] = None,
    workers: WorkersOption = None,
    resume: ResumeOption = False,
    seed: SeedOption = 0,
    mlflow: MlflowOption = None,
) -> None:
    """Train policies with many settings, stop bad trials early, and keep the best if it beats the best rule.

    A trial is chosen by its return on episodes of the sweep's own. The best of all is then judged on episodes
    that nobody has learned from or chosen by, as by `train planning`. Writes into OUT: the policy,
    trials.csv, sweep.json, sweep.html and an MLflow run per trial. Stopped at any point, the same command
    goes on and loses no finished trial. Inside a Ray job (RAY_ADDRESS is set) the cluster of the job is used;
    it must see the same paths.
    """
    from qiance.cli.stages import Stages
    from serve.loopback import prepare

    prepare(os.environ)  # before Ray is imported
    console = Console()
    arguments = task_arguments(environment, data, world)
    with Stages(console).stage(f"sweeping in {environment}") as stage:
        sweep = PlanningSweep.of(arguments, space, trials, iterations, envs, workers, seed)
        result = sweep.run(out, resume, mlflow, stage.tell)
        if result.before:
            stage.note(f"{result.before} of {len(result.trials)} trials were there before")
    _show(console, result, out)


@dataclass(frozen=True)
class PlanningSweep:
    """What is swept: arguments of the task, and the settings that drawn parameters are laid over."""

    arguments: Mapping[str, str]
    task: Task
    base: PlanningSettings
    experiment: Experiment

    @classmethod
    def of(
        cls,
        arguments: Mapping[str, str],
        space: Path | None,
        trials: int,
        iterations: int | None,
        envs: int | None,
        workers: int | None,
        seed: int,
    ) -> PlanningSweep:
        """SettingsError for a space with mistakes; ValueError for an environment that is none."""
        from rllib.plan_algorithms import DEFAULTS
        from rllib.plan_space import PlanningTunable
        from rllib.plan_sweep import GRACE, SHARES, STEPS, PlanningWorkshop
        from rllib.tasks import task_of
        from training.tune.experiment import Experiment, Halving
        from training.tune.space import read_space

        usual = DEFAULTS[arguments["environment"]]
        base = replace(
            usual, seed=seed, iterations=iterations or usual.iterations, num_envs=envs or usual.num_envs
        )
        searched, task = read_space(space, PlanningTunable(base)), task_of(arguments)
        experiment = Experiment(
            space=searched,
            metric=METRIC,
            mode="max",
            trials=trials,
            seed=seed,
            shares=SHARES,
            halving={model: Halving(STEPS, GRACE) for model in searched.models},
            workshop=lambda: PlanningWorkshop.of(task, base),
            workers=workers,
            address=os.environ.get("RAY_ADDRESS"),
            spec=".5g",
        )
        return cls(arguments, task, base, experiment)

    def inputs(self) -> dict[str, Any]:
        """What must be equal for a sweep to go on: how many trials, and at a time, may change."""
        from rllib.planning import content_of

        return {
            "environment": content_of(self.arguments),
            "space": self.experiment.space.plain,
            "settings": asdict(self.base),
        }

    def run(self, out: Path, resume: bool, tracking_uri: str | None, tell: Tell) -> SweepResult:
        """Run the trials that are missing, judge the best of all, and write what came of it."""
        from training.tune.engine import run_experiment

        inputs = self.inputs()
        return run_experiment(
            self.experiment,
            inputs,
            out,
            name=f"planning {self.task.name}",
            params={"environment": self.task.name, **inputs["settings"]},
            finish=lambda result, tell: self._finish(result, out, tell),
            resume=resume,
            tracking_uri=tracking_uri,
            tell=tell,
        )

    def _finish(self, result: SweepResult, out: Path, tell: Tell) -> list[Path]:
        from qiance.report.sweep import write_sweep_page
        from training.tune.run import figures_of, page_of_sweep, write_summary

        winner = winner_of(result)
        tell(0.97, f"judging {winner.name} on {self.base.episodes * self.base.rounds:,} held-out episodes")
        kept = self._kept(winner, out)
        episodes = f"{self.base.episodes * self.base.rounds:,} episodes"
        page = page_of_sweep(
            self.experiment,
            result,
            title=f"Sweep of planning policies in {self.task.name}",
            label="an episode",
            judged_on=f"{episodes} to choose by",
            held_out="episodes",
            anew="qiance train planning-sweep",
            units=dict.fromkeys(
                self.experiment.space.models, "looks at it, after equal shares of the episodes"
            ),
        )
        write_sweep_page(out / PAGE, page)
        said = {"metric": METRIC, "environment": self.task.name, "settings": asdict(self.base)}
        write_summary(out / SUMMARY, {**said, **figures_of(result), "winner": winner.name, "kept": kept})
        return [out / PAGE, out / SUMMARY]

    def _kept(self, winner: Outcome, out: Path) -> dict[str, Any]:
        """What was kept; read where this winner has been judged before."""
        from rllib.plan_evaluate import best_constant
        from rllib.plan_keep import TUNING_SEED, keep_better
        from rllib.plan_space import trial_settings
        from rllib.planning import digest

        before = _summary(out)
        if before.get("winner") == winner.name and (out / before["kept"]["policy"]).is_dir():
            found: dict[str, Any] = before["kept"]
            return found
        settings = trial_settings(self.base, winner.model, winner.parameters)
        kept = keep_better(
            self.task,
            best_constant(self.task, self.base.episodes, TUNING_SEED),
            self._network(winner, out),
            self.base,
            out,
            metrics={"iterations": settings.iterations},
            fingerprint=digest(self.arguments, settings),
        )
        return {
            "policy": kept.artifact.path.name,
            "chosen": kept.chosen,
            "best_rule": kept.best_rule,
            "returns": {name: asdict(found) for name, found in kept.returns.items()},
            "gain": asdict(kept.gain),
        }

    def _network(self, winner: Outcome, out: Path) -> Network:
        """The winner's policy; kept in its folder, for its state is dropped when all is written."""
        from rllib.plan_sweep import policy_in
        from rllib.policies import read_network, write_network
        from training.tune.record import Record

        record = Record.of(out, winner.model, winner.number)
        path = record.folder / POLICY
        if not path.exists():
            saved = record.load()
            assert saved is not None, "a trial with a value has a state until it is over"
            best = policy_in(saved[0], self.task)
            assert best is not None, "and a policy with it"
            write_network(path, best[1])
        return read_network(path, self.task)


def winner_of(result: SweepResult) -> Outcome:
    """The trial with the highest return, of whichever algorithm."""
    return max(result.best.values(), key=lambda one: one.value or float("-inf"))


def _summary(out: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _show(console: Console, result: SweepResult, out: Path) -> None:
    from qiance.cli.tune import best_sentence, trials_table
    from qiance.domain import Interval

    for model, one in result.best.items():
        console.print(trials_table(model, result, METRIC, larger_is_better=True, spec=",.5g"))
        console.print(best_sentence(model, one, result, METRIC, ",.5g"), highlight=False)
    kept = _summary(out)["kept"]
    returns = {name: Interval(**found) for name, found in kept["returns"].items()}
    console.print(returns_table(returns, kept["chosen"]))
    gain = Interval(**kept["gain"])
    console.print(kept_sentence(kept["chosen"], kept["best_rule"], gain), highlight=False)
    console.print(
        f"Policy: [bold]{out / kept['policy']}[/]; trials: {out / 'trials.csv'}; page: {out / PAGE}",
        highlight=False,
    )
