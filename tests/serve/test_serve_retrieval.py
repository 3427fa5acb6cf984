"""Briefs whose items a sequence model retrieves: from its artifact to strategies, and what is refused."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from built_cases import GUARD, Built, events
from serve_cases import Shop
from test_serve_planning import ASKED
from typer.testing import CliRunner

from qiance.artifacts.effect import EffectModel
from qiance.cli.loop.service import app_args, check_briefs
from qiance.cli.main import app
from qiance.decide.predictor import FramePredictor, GridPredictor
from qiance.domain import Catalogue, Purpose
from qiance.market import CONTACT_COST
from qiance.settings import Settings
from qiance.workspace import Snapshot, Workspace
from serve.args import AppArgs, BriefArgs, LlmArgs
from serve.assemble_planning import open_retrieval
from serve.generator.worker import BriefWorker
from training.recommend.events import read_events
from training.recommend.fit import RecommendSettings
from training.recommend.sequences import purchases_of
from training.recommend.train import train_recommender

SMALL = RecommendSettings(width=8, blocks=1, heads=1, length=8, epochs=1, batch=32)
TIMES = 12  # as often is the catalogue repeated, so that not all of it is asked about


@pytest.fixture(scope="module")
def workspace(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run with its events, a catalogue of more than is asked about, and a model of purchases in `next`."""
    found = Workspace(tmp_path_factory.mktemp("run"))
    found.data.mkdir()
    pq.write_table(events(), found.data / "events.parquet")
    shutil.copytree(built.workspace.artifacts, found.artifacts)
    snapshot = built.snapshot
    items = tuple(
        item if not turn else replace(item, item_id=f"{item.item_id}.{turn}")
        for turn in range(TIMES)
        for item in snapshot.catalogue
    )
    values = {name: np.tile(own, TIMES) for name, own in snapshot.item.items()}
    replace(snapshot, catalogue=Catalogue(items), item=values).save(found.snapshot)
    purchases, _ = read_events(found.data / "events.parquet")
    train_recommender(purchases, found.root / "next", SMALL)
    return found


def artifact_of(folder: Path) -> Path:
    return next(folder.glob("recommend-model-*"))


def args_of(workspace: Workspace, recommender: Path, **more: object) -> AppArgs:
    return AppArgs(workspace=workspace.root, briefs=BriefArgs(recommender=recommender), **more)  # type: ignore[arg-type]


def test_items_of_a_brief_are_retrieved_by_what_is_bought_next(
    shop: Shop, workspace: Workspace, built: Built
) -> None:
    args = args_of(workspace, artifact_of(workspace.root / "next"), unrecorded_consent="granted")
    snapshot = Snapshot.load(workspace.snapshot)
    model = EffectModel.load(workspace.artifact("effect-model", built.model))
    grid = GridPredictor(model, snapshot.catalogue, snapshot.item, snapshot.categories)
    worker = BriefWorker(
        workspace.snapshot,
        shop.ledger,
        FramePredictor(grid, snapshot.users, snapshot.user_category),
        LlmArgs(enabled=False),
        lambda _: pytest.fail("the language model is switched off"),
        CONTACT_COST,
        seed=0,
        guard=GUARD,
        retrieval=open_retrieval(args, shop.ledger),
    )
    brief_id = shop.post("/v1/briefs", ASKED).json()["brief_id"]
    worker.work()
    shown = shop.ask("GET", f"/v1/briefs/{brief_id}").json()
    assert shown["state"] == "done", shown["message"]
    version = artifact_of(workspace.root / "next").name.removeprefix("recommend-model-")
    found = {strategy["provenance"]["item"] for strategy in shown["strategies"]}
    assert found == {f"sequence model {version}, then predicted objective"}


def test_who_did_not_agree_has_no_purchases(shop: Shop, workspace: Workspace) -> None:
    """The model then knows of them only what everybody buys."""
    path = artifact_of(workspace.root / "next")
    catalogue = Snapshot.load(workspace.snapshot).catalogue
    makers = [
        open_retrieval(args_of(workspace, path, unrecorded_consent=said), shop.ledger)
        for said in ("granted", "denied")
    ]
    known, unknown = (maker(catalogue).chances(["u0"]) for maker in makers if maker is not None)
    assert makers[1] is not None
    everybody = makers[1](catalogue).chances(["stranger"])
    np.testing.assert_allclose(unknown, everybody)
    assert np.abs(known - unknown).max() > 1e-3
    shop.ledger.set_consent("u0", {Purpose.PERSONALISATION: True}, "a test")
    np.testing.assert_allclose(makers[1](catalogue).chances(["u0"]), known)


def test_what_cannot_retrieve_is_refused_at_the_start(
    shop: Shop, workspace: Workspace, built: Built, tmp_path: Path
) -> None:
    own = artifact_of(workspace.root / "next")
    lines = [(f"u{n}", [f"x{k}" for k in range(5)]) for n in range(40)]
    train_recommender(purchases_of(lines, "another shop"), tmp_path / "foreign", SMALL)
    damaged = shutil.copytree(own, tmp_path / own.name)
    (damaged / "items.json").write_text("{}")
    effect = workspace.artifact("effect-model", built.model)
    for path, message in (
        (artifact_of(tmp_path / "foreign"), "knows 5 items, and none of the 72 of the catalogue"),
        (damaged, "'items.json' was changed"),
        (effect, "is of kind 'effect-model'; pass a 'recommend-model'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            open_retrieval(args_of(workspace, path), shop.ledger)
    with pytest.raises(ValueError, match=r"events\.parquet.* does not exist"):
        open_retrieval(args_of(built.workspace, own), shop.ledger)
    assert open_retrieval(AppArgs(workspace=workspace.root), shop.ledger) is None
    done = CliRunner().invoke(app, ["up", "--runs", str(tmp_path), "--recommender", str(damaged)])
    assert "'items.json' was changed" in str(done.exception)


def test_the_settings_name_the_model_or_the_folder_of_its_training(workspace: Workspace) -> None:
    own = artifact_of(workspace.root / "next")
    for given in (own, workspace.root / "next"):
        chosen = Settings.model_validate({"briefs": {"recommender": given}})
        check_briefs(chosen)
        assert app_args(workspace, chosen, "system")["briefs"]["recommender"] == str(own.resolve())
