"""The whole offline loop: one function is the whole path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from qiance.cli.loop.prepare import new_workspace, publish_latest
from qiance.cli.offline import learn as learning
from qiance.cli.offline.estimate import Evaluated, Log, evaluate, make_log, proposed_of
from qiance.cli.offline.policies import Choice, policies
from qiance.cli.offline.propose import kinds_in, propose
from qiance.cli.offline.reporting import Finished, gain_words, offline_report
from qiance.cli.offline.sources import SOURCES, Source, check_arguments, read_responses
from qiance.cli.offline.study import Study, prepare_study
from qiance.cli.stages import Stage, Stages
from qiance.report import RunReport, summary_table, write_report
from qiance.settings import Settings
from qiance.workspace import Workspace

MODEL_NAME = "offline-effect"


def run_offline(settings: Settings, runs: Path, console: Console) -> Path:
    """Learn from a log of real responses; the folder of the run, with report.html and report.json in it."""
    from serve.launch import LocalCluster

    source = SOURCES[settings.data.source]
    check_arguments(settings.data)
    workspace = new_workspace(runs)
    stages = Stages(console)
    # 1. The log, checked row by row, and the two halves of its units.
    with stages.stage("Read and check the logged responses") as stage:
        responses = read_responses(settings.data, workspace.data / "quarantine", stage)
        study = prepare_study(responses, source.labels, settings.seed)
        _tell_read(study, stage)
    # 2. What does an arm do to a customer? Each half's model is asked about the other half only.
    with stages.stage("Train an effect model on each half (Ray Train)") as stage, LocalCluster():
        learned = learning.train_models(workspace, study, settings, stage)
    document = judge(workspace, study, learned, source, settings, stages)
    write_report(document, workspace.root)
    publish_latest(runs, workspace)
    console.print(summary_table(document))
    return workspace.root


def judge(
    workspace: Workspace,
    study: Study,
    learned: learning.Learned,
    source: Source,
    settings: Settings,
    stages: Stages,
) -> RunReport:
    """From the trained models to the document: compare, propose, optimise, estimate."""
    with stages.stage("Compare with the baselines, register") as stage:
        learned = replace(learned, scores=learning.compare_models(study, learned, settings))
        stage.tell(0.6, "registering the model")
        learning.register_model(workspace, learned, MODEL_NAME, settings)
    with stages.stage("Predict every arm for every customer") as stage:
        predictions = learning.predict(study, learned.models, stage.tell)
    cost_fraction = settings.data.cost_fraction
    log = make_log(study, predictions.means, cost_fraction)
    # 3. Strategies from the first half, checked on the second.
    with stages.stage("Propose strategies") as stage:
        proposals = propose(study, log, predictions, learned.models[0], source, cost_fraction)
        stage.note(kinds_in(proposals))
    # 4. Policies, and what the log says they would have earned.
    with stages.stage("Optimise and estimate off-policy") as stage:
        choice = Choice(
            value=predictions.means[study.primary],
            arms=study.arms,
            control=study.has_control,
            halves=(study.first, ~study.first),
            logging=log.logging,
            epsilon=settings.serve.epsilon,
        )
        evaluated = _evaluate_all(study, log, choice, stage)
        rate = float((study.outcome(study.primary) > 0).mean())
        chosen = proposed_of(evaluated, choice.proposals, rate)
        stage.note(f"proposed, {chosen.name}: {gain_words(chosen, study)}")
    finished = Finished(study, learned, proposals, evaluated, chosen, source)
    return offline_report(finished, settings, stages)


def _tell_read(study: Study, stage: Stage) -> None:
    report = study.responses.report
    stage.note(f"{report.rows_read:,} rows read, {report.quarantined:,} quarantined")
    happened = int((study.outcome(study.primary) > 0).sum())
    stage.note(f"{len(study.arms)} arms; {happened:,} rows with {study.primary}, which is optimised")


def _evaluate_all(study: Study, log: Log, choice: Choice, stage: Stage) -> list[Evaluated]:
    found: list[Evaluated] = []
    for policy in policies(choice):
        stage.tell(len(found) / 12, policy.name)
        found.append(evaluate(log, policy, study.primary, study.has_control))
    return found
