"""Entities, sources, views and services. Values come from the functions of `qiance.features`.

Sources are relative to the folder of feature_store.yaml, so the folder can be staged anywhere. A view lists
its join keys first in its schema: the first names the partition of the online store.
"""

from datetime import timedelta
from pathlib import Path

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
    ValueType,
)
from feast.types import Array, Float32, Float64, Int64, String

from qiance.features.calendar import CALENDAR_FEATURES
from qiance.features.embedding_spec import EmbeddingSpec, load_embeddings
from qiance.features.exposure import EXPOSURE_FEATURES
from qiance.features.on_demand import calendar_now, exposure_now, session_now
from qiance.features.session import SESSION_FEATURES
from qiance.features.transforms import (
    ITEM_FEATURES,
    ITEM_POPULARITY_FEATURES,
    MARKET_FEATURES,
    USER_BRAND_FEATURES,
    USER_CATEGORY_FEATURES,
    USER_FEATURES,
)

BATCH_TTL = timedelta(days=120)


def _entity(name: str, key: str, description: str) -> Entity:
    return Entity(name=name, join_keys=[key], value_type=ValueType.STRING, description=description)


def _source(name: str) -> FileSource:
    return FileSource(
        name=name,
        path=f"data/{name}.parquet",
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )


def _numbers(*names: str) -> list[Field]:
    return [Field(name=name, dtype=Float64) for name in names]


def _view(
    name: str,
    entities: list[Entity],
    fields: list[Field],
    description: str,
    ttl: timedelta = BATCH_TTL,
    source: FileSource | PushSource | None = None,
) -> FeatureView:
    keys = [Field(name=entity.join_key, dtype=String) for entity in entities]
    return FeatureView(
        name=name,
        entities=entities,
        schema=[*keys, *fields],
        ttl=ttl,
        source=source or _source(name),
        description=description,
    )


user = _entity("user", "user_id", "A customer")
item = _entity("item", "item_id", "A product")
category = _entity("category", "category", "A product category")
brand = _entity("brand", "brand", "A product brand")
campaign = _entity("campaign", "campaign_id", "A strategy that was or is live")
market = _entity("market", "market_id", "The shop as a whole; one row, `default`")

user_profile = _view(
    "user_profile",
    [user],
    _numbers(*USER_FEATURES),
    "Recency, frequency, monetary value, price sensitivity and coupon use over 90 days; minor units",
)
user_category = _view(
    "user_category",
    [user, category],
    _numbers(*USER_CATEGORY_FEATURES),
    "A user's behaviour in a category over 90 days; only pairs with a purchase have a row",
)
user_brand = _view(
    "user_brand",
    [user, brand],
    _numbers(*USER_BRAND_FEATURES),
    "A user's behaviour with a brand over 90 days; only pairs with a purchase have a row",
)
item_state = _view(
    "item_state",
    [item],
    _numbers(*ITEM_FEATURES),
    "Price in minor units, margin rate, demand over 28 days, promotion and stock",
)
item_popularity = _view(
    "item_popularity",
    [item],
    _numbers(*ITEM_POPULARITY_FEATURES),
    "Units and buyers by window, and their trend",
)
market_signals = _view(
    "market_signals",
    [market],
    _numbers(*MARKET_FEATURES),
    "Demand of the whole shop by window, and its trend",
)
campaign_history = _view(
    "campaign_history",
    [campaign],
    _numbers("campaign_contacts", "campaign_click_rate", "campaign_conversion_rate", "campaign_sales_rate"),
    "What came of a strategy so far: contacts, and clicks, conversions and sales (minor units) per contact",
)

session_events = PushSource(name="session_events", batch_source=_source("user_session"))
user_session = _view(
    "user_session",
    [user],
    [
        Field(name="event_times", dtype=Array(Int64)),
        Field(name="event_types", dtype=Array(Int64)),
        Field(name="event_items", dtype=Array(String)),
    ],
    "Recent events, oldest first: microseconds since the epoch, codes of types, item ids",
    ttl=timedelta(hours=1),
    source=session_events,
)
user_exposure = _view(
    "user_exposure",
    [user],
    [Field(name="contact_times", dtype=Array(Int64))],
    "Contacts of the last 28 days, microseconds since the epoch",
    ttl=timedelta(days=28),
)


def _embedding_view(spec: EmbeddingSpec) -> FeatureView:
    """The view of one entry of embeddings.yaml."""
    return _view(
        spec.name,
        [{"user": user, "item": item}[spec.entity]],
        [Field(name="embedding", dtype=Array(Float32)), *_numbers(*spec.scores)],
        f"{spec.modality} of {', '.join(spec.columns)} by {spec.model}, {spec.dimension} numbers",
        ttl=timedelta(days=spec.ttl_days),
    )


EMBEDDINGS = {
    spec.name: _embedding_view(spec) for spec in load_embeddings(Path(__file__).parent / "embeddings.yaml")
}
# Feast looks for definitions among a module's own names.
globals().update(EMBEDDINGS)

moment = RequestSource(name="moment", schema=[Field(name="now_us", dtype=Int64)])
session_now_view = OnDemandFeatureView(
    name="session_now",
    sources=[user_session, moment],
    schema=_numbers(*SESSION_FEATURES),
    mode="pandas",
    udf=session_now,
    udf_string="qiance.features.on_demand.session_now",
    description="The session that is under way at the moment of the request",
)
exposure_now_view = OnDemandFeatureView(
    name="exposure_now",
    sources=[user_exposure, moment],
    schema=_numbers(*EXPOSURE_FEATURES),
    mode="pandas",
    udf=exposure_now,
    udf_string="qiance.features.on_demand.exposure_now",
    description="Contacts by window at the moment of the request",
)
calendar_view = OnDemandFeatureView(
    name="calendar",
    sources=[moment],
    schema=_numbers(*CALENDAR_FEATURES),
    mode="pandas",
    udf=calendar_now,
    udf_string="qiance.features.on_demand.calendar_now",
    description="Season, week and public holidays at the moment of the request",
)

# A retailer's whole picture, for models of one's own; what one model reads has a service of its own below.
retail_v1 = FeatureService(
    name="retail_v1",
    features=[
        *(user_profile, user_category, user_brand, session_now_view, exposure_now_view),
        *(item_state, item_popularity, market_signals, campaign_history, calendar_view),
        *EMBEDDINGS.values(),
    ],
    description="Everything that is known of user, item, shop, campaign and moment",
)
effect_v1 = FeatureService(
    name="effect_v1",
    features=[user_profile, user_category, session_now_view, item_state, item_popularity],
    description="What the effect model is trained on and reads at a decision",
)
user_v1 = FeatureService(
    name="user_v1", features=[user_profile], description="The user's row, read once per decision"
)
user_category_v1 = FeatureService(
    name="user_category_v1", features=[user_category], description="The user's row in each category"
)
user_brand_v1 = FeatureService(
    name="user_brand_v1", features=[user_brand], description="The user's row in each brand"
)
item_v1 = FeatureService(
    name="item_v1", features=[item_state], description="Items, kept as a snapshot in the replica"
)
item_popularity_v1 = FeatureService(
    name="item_popularity_v1", features=[item_popularity], description="Demand of items by window"
)
market_v1 = FeatureService(
    name="market_v1", features=[market_signals], description="Demand of the whole shop"
)
calendar_v1 = FeatureService(name="calendar_v1", features=[calendar_view], description="What the date says")
campaign_v1 = FeatureService(
    name="campaign_v1", features=[campaign_history], description="What came of a strategy so far"
)
session_v1 = FeatureService(
    name="session_v1", features=[session_now_view], description="The session under way, by Feast's own client"
)
exposure_v1 = FeatureService(
    name="exposure_v1", features=[exposure_now_view], description="Contact pressure, by Feast's own client"
)
