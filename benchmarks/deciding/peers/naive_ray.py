"""The first thing that one would write: Serve's defaults, Feast's own client asked for every candidate.

An ingress deployment calls a predictor deployment once per request; the predictor asks Feast's SQLite store
for the user and all candidates, scores them with the same model file, and takes the best, or now and then a
random one. There is no log, no budget and no cap.
"""

import secrets
import time
from typing import Any

import numpy as np

from benchmarks.deciding.peers.command import default_ray, read_command, wait_for_end
from qiance.artifacts.effect import EffectModel
from qiance.decide.predictor import discount_of
from qiance.domain import CONTROL_ACTION, StrategyState
from qiance.features.columns import EFFECT_SCHEMA, ActionColumns, assemble
from qiance.ledger import Ledger, load_or_create_key
from qiance.workspace import Snapshot, Workspace
from serve.args import AppArgs
from serve.schemas import DecisionRequest

SHADOW_PRICE = 0.5


class NaivePredictor:
    """Scores one user with all candidates."""

    def __init__(self, args: dict[str, Any], stock: str) -> None:
        from feast import FeatureStore

        self._args = AppArgs.model_validate(args)
        workspace = Workspace(self._args.workspace)
        ledger = Ledger.open(self._args.open_url(), key=load_or_create_key(workspace.key_file))
        live = [action for s in ledger.strategies(state=StrategyState.LIVE) for action in s.actions]
        self._actions = [*live, CONTROL_ACTION]
        path = workspace.artifact("effect-model", ledger.versions().model)
        self._model = EffectModel.load(path, EFFECT_SCHEMA)
        catalogue = Snapshot.load(workspace.snapshot).catalogue
        self._parts = ActionColumns.build(
            self._actions, catalogue.index, [item.category for item in catalogue]
        )
        self._discount = np.array([discount_of(action, catalogue) for action in live])
        self._store = FeatureStore(repo_path=stock)
        self._service = self._store.get_feature_service(EFFECT_SCHEMA.service)
        self.decide("user-0000000")

    def decide(self, user_id: str) -> dict[str, Any]:
        """The answer, as the product gives it."""
        value, cost = self._score(user_id)
        score = np.append(value - SHADOW_PRICE * cost, 0.0)
        explores = np.random.random() < self._args.epsilon
        chosen = int(np.random.randint(len(score)) if explores else score.argmax())
        share = self._args.epsilon / len(score)
        action = self._actions[chosen]
        return {
            "decision_id": secrets.token_hex(16),
            "actions": [
                {
                    "action_id": action.action_id,
                    "strategy_id": action.strategy_id,
                    "item_id": action.item_id,
                    "channel": action.channel.value,
                    "propensity": share + (1.0 - self._args.epsilon) * (chosen == score.argmax()),
                }
            ],
            "model_version": self._model.version,
            "policy_version": "naive",
            "degraded": [],
        }

    def _score(self, user_id: str) -> tuple[np.ndarray, np.ndarray]:
        """`[A]` expected incremental margin and cost of every candidate."""
        drawn = self._model.predict(self._columns(user_id))
        margin, conversion = drawn.margin.mean(axis=1), drawn.conversion.mean(axis=1)
        contact = self._parts.numeric["contact_cost"][:-1]
        return margin[:-1] - contact - margin[-1], contact + conversion[:-1] * self._discount

    def _columns(self, user_id: str) -> dict[str, np.ndarray]:
        parts, now_us = self._parts, int(time.time() * 1e6)
        rows = [
            {
                "user_id": user_id,
                "item_id": action.item_id or "",
                "category": category,
                "now_us": now_us,
            }
            for action, category in zip(self._actions, parts.category, strict=True)
        ]
        found = self._store.get_online_features(self._service, entity_rows=rows).to_dict()
        features = {
            name: np.array(values, dtype=float) for name, values in found.items() if name not in rows[0]
        }
        return assemble(
            user=features,
            item=features,
            user_category=features,
            actions=parts.columns(),
            contacts_7d=np.zeros(len(rows)),
        )


def application(args: dict[str, Any], stock: str) -> Any:
    """Ingress → predictor."""
    from fastapi import FastAPI
    from ray import serve

    api = FastAPI()

    @serve.deployment(name="Ingress")
    @serve.ingress(api)
    class Ingress:
        def __init__(self, predictor: Any) -> None:
            self._predictor = predictor

        @api.post("/v1/decisions")
        async def decide(self, body: DecisionRequest) -> dict[str, Any]:
            return await self._predictor.decide.remote(body.user_id)

        @api.get("/healthz")
        async def health(self) -> str:
            return "ready"

    predictor = serve.deployment(NaivePredictor).bind(args, stock)
    return Ingress.bind(predictor)  # type: ignore[attr-defined]  # a deployment by its decorator


def main() -> None:
    """Serve until ended."""
    command = read_command()
    with default_ray(command.port):
        from ray import serve

        serve.run(application(command.args, command.stock), route_prefix="/")
        wait_for_end()


if __name__ == "__main__":
    main()
