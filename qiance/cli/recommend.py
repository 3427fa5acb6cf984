"""`qiance train recommend` and `qiance recommend`: what a customer buys next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qiance.cli.predict import trained_model
from qiance.domain import Channel
from qiance.settings import DEFAULT_WORKSPACE
from qiance.workspace import Workspace


def train(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="A line `user item item ...` per user, oldest first, may be gzipped; or a table (Parquet, "
            "CSV, JSON lines) with user_id, item_id, occurred_at, such as data/events.parquet of a run.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and its figures.")],
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; it stops when nothing improves.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With equal data, the same seed gives the same model.")] = 0,
) -> None:
    """Learn from the order of purchases what is bought next.

    The last purchase of each user judges the model, the one before it says when to stop. Writes into OUT: the
    model with its card, and metrics.json. `qiance recommend` uses the model.
    """
    from dataclasses import replace

    from qiance.cli.stages import Stages

    console = Console()
    stages = Stages(console)
    with stages.stage(f"reading {data.name}") as stage:
        from training.recommend.events import is_events, read_events
        from training.recommend.fit import RecommendSettings
        from training.recommend.sequences import MIN_PURCHASES, read_sequences
        from training.recommend.train import train_recommender

        purchases, left_out = read_events(data) if is_events(data) else (read_sequences(data), 0)
        stage.note(f"{len(purchases):,} users, {len(purchases.items):,} items")
        if left_out:
            stage.note(f"{left_out:,} users left out: fewer than {MIN_PURCHASES} different items")
    settings = RecommendSettings(seed=seed)
    settings = settings if epochs is None else replace(settings, epochs=epochs)
    with stages.stage("training") as stage:
        metrics = train_recommender(purchases, out, settings, stage.tell).metrics
    popular, alone = metrics["beside"]["popularity"], metrics["beside"]["neighbours"]
    console.print(
        f"The last purchase was among the first ten of all items for {metrics['hr10']:.2%} of the users "
        f"(neighbours alone {alone['hr10']:.2%}, popularity {popular['hr10']:.2%}); "
        f"NDCG@10 {metrics['ndcg10']:.4f} ({alone['ndcg10']:.4f}, {popular['ndcg10']:.4f})",
        highlight=False,
    )
    console.print(f"Model and figures: [bold]{out}[/]", highlight=False)


def recommend(
    items: Annotated[
        list[str] | None, typer.Argument(metavar="ITEM...", help="What was bought, oldest first.")
    ] = None,
    model: Annotated[
        Path, typer.Option("--model", help="Folder that `qiance train recommend` wrote, or its artifact.")
    ] = Path("recommend"),
    count: Annotated[int, typer.Option("-n", min=1, help="Items to recommend.")] = 10,
    user: Annotated[
        str | None,
        typer.Option(help="A user of --run: from what they bought, ranked by what the effect model expects."),
    ] = None,
    run: Annotated[
        Path, typer.Option(help="With --user: the run with catalogue, purchases and champion.")
    ] = DEFAULT_WORKSPACE,
    channel: Annotated[Channel, typer.Option(help="With --user: where the slate is shown.")] = Channel.EMAIL,
    stock: Annotated[
        Path | None,
        typer.Option(
            help="With --user: item_id and stock (CSV, JSON lines, Parquet); what is out stays out."
        ),
    ] = None,
    diversity: Annotated[
        float,
        typer.Option(min=0.0, max=0.99, help="With --user: what each further item of a category loses."),
    ] = 0.3,
) -> None:
    """Say what comes next after these purchases, or a slate for a user; prints one JSON object.

    `chance` is among all items that were not bought yet. Items that the model does not know are passed over;
    with none known the most bought ones are given, and `cold` is true. With --user, items of the catalogue
    that are likely next are ranked by the margin that showing them adds, as the champion predicts it.
    """
    from qiance.artifacts.recommend import load_recommender

    path = trained_model(model)
    if user is not None:
        if items:
            raise typer.BadParameter("give items or --user, not both", param_hint="--user")
        from qiance.cli.recommend_slate import SlateRequest, slate_for

        request = SlateRequest(user, channel, count, diversity, stock)
        print(json.dumps(slate_for(path, Workspace(run), request), ensure_ascii=False, indent=1))
        return
    found = load_recommender(path).recommend(items or [], count)
    rows = [
        {"rank": rank, "item_id": item, "chance": round(chance, 8)}
        for rank, (item, chance) in enumerate(zip(found.items, found.chance, strict=True), start=1)
    ]
    print(json.dumps({"model": path.name, "cold": found.cold, "items": rows}, ensure_ascii=False, indent=1))
