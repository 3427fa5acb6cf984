"""Entities, sources, views and services. Values come from `qiance.features.transforms`.

Sources are relative to the folder of feature_store.yaml, so the folder can be staged anywhere.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A customer")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="A product")
category = Entity(
    name="category", join_keys=["category"], value_type=ValueType.STRING, description="A product category"
)


def _source(name: str) -> FileSource:
    return FileSource(
        name=name,
        path=f"data/{name}.parquet",
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )


user_profile_source = _source("user_profile")
item_state_source = _source("item_state")
user_category_source = _source("user_category")

user_profile = FeatureView(
    name="user_profile",
    description="Recency, frequency, monetary value and kin over 90 days; money in minor units",
    entities=[user],
    ttl=timedelta(days=120),
    schema=[
        Field(name="recency_days", dtype=Float64),
        Field(name="baskets_90d", dtype=Float64),
        Field(name="spend_90d", dtype=Float64),
        Field(name="avg_basket", dtype=Float64),
        Field(name="discount_share", dtype=Float64),
        Field(name="tenure_days", dtype=Float64),
        Field(name="categories_90d", dtype=Float64),
    ],
    source=user_profile_source,
)

item_state = FeatureView(
    name="item_state",
    description="Price in minor units, margin rate and demand over 28 days",
    entities=[item],
    ttl=timedelta(days=120),
    schema=[
        Field(name="price", dtype=Float64),
        Field(name="margin_rate", dtype=Float64),
        Field(name="units_28d", dtype=Float64),
        Field(name="buyers_28d", dtype=Float64),
        Field(name="item_discount_share", dtype=Float64),
    ],
    source=item_state_source,
)

user_category = FeatureView(
    name="user_category",
    description="A user's behaviour in a category over 90 days; only pairs with a purchase have a row",
    entities=[user, category],
    ttl=timedelta(days=120),
    schema=[
        Field(name="category_share", dtype=Float64),
        Field(name="category_baskets_90d", dtype=Float64),
        Field(name="category_recency_days", dtype=Float64),
    ],
    source=user_category_source,
)

effect_v1 = FeatureService(
    name="effect_v1",
    features=[user_profile, item_state, user_category],
    description="What the effect model is trained on",
)
user_v1 = FeatureService(
    name="user_v1", features=[user_profile], description="The user's row, read once per decision"
)
item_v1 = FeatureService(
    name="item_v1", features=[item_state], description="Items, kept as a snapshot in the replica"
)
user_category_v1 = FeatureService(
    name="user_category_v1", features=[user_category], description="The user's row in each category"
)
