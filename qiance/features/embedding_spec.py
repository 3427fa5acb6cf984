"""The declared embeddings of `feature_repo/embeddings.yaml`: which columns, which model, which view.

Read by the batch job that computes them and by the Feast repository that declares their views, so it
imports neither. docs/embeddings.md has the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

EMBEDDED = "embedded"
# SHA-256 of the published weights of all-MiniLM-L6-v2, which is what `embedded` means.
EMBEDDED_FINGERPRINT = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SENTIMENT_MEAN, SENTIMENT_N = "sentiment_mean", "sentiment_n"

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Column = Annotated[str, Field(min_length=1)]
Days = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Roles(_Strict):
    """Role → column of the source table.

    key: id of the entity; None is `item_id` or `user_id`. at: when the row was written: rows after the
    instant that is computed are left out, and it is needed for windows. recommended: 0 or 1; rating: a
    number: the label that sentiment is fitted on, one of them.
    """

    key: Column | None = None
    at: Column | None = None
    recommended: Column | None = None
    rating: Column | None = None


class Compute(_Strict):
    """What one run may use: `workers` processes, each holding the model once on `cpus` and `gpus`."""

    workers: int = Field(1, ge=1, le=1024)
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)


class EmbeddingSpec(_Strict):
    """One embedding feature; `name` is its Feast view and the name of its table.

    columns: joined for text; the one column with a path or bytes for images and audio.
    model: `embedded` (all-MiniLM-L6-v2, text only), a local folder, or a Hugging Face id.
    pooling: mean over the model's positions, the `first` position, or the model's own `pooler` output;
        the vector then has length 1.
    combine: `one` source row per entity, or the `mean` over its rows (reviews, search words).
    window_days: rows older than this are left out; half_life_days: a row's weight halves every so often.
    scores: extra float columns: sentiment_mean (shrunk towards the mean of all reviews by
        `prior_reviews` of them) and sentiment_n. positive_from: a rating from here on is positive.
    max_tokens: longer texts are cut. batch_size: rows per pass of the model.
    """

    name: Name
    entity: Literal["user", "item"]
    modality: Literal["text", "image", "audio"]
    model: str = Field(EMBEDDED, min_length=1)
    columns: tuple[Column, ...] = Field(min_length=1)
    dimension: int = Field(ge=1, le=65_536)
    pooling: Literal["mean", "first", "pooler"] = "mean"
    combine: Literal["one", "mean"] = "one"
    roles: Roles = Roles()
    scores: tuple[Literal["sentiment_mean", "sentiment_n"], ...] = ()
    ttl_days: Days
    window_days: Days | None = None
    half_life_days: Days | None = None
    prior_reviews: float = Field(10.0, ge=0, allow_inf_nan=False)
    positive_from: float = Field(4.0, allow_inf_nan=False)
    max_tokens: int = Field(256, ge=8, le=8_192)
    batch_size: int = Field(32, ge=1, le=4_096)
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = list(_problems(self))
        if found:
            raise ValueError("; ".join(found))
        return self

    @property
    def key_column(self) -> str:
        """Key of the feature table: `item_id` or `user_id`."""
        return f"{self.entity}_id"

    @property
    def source_key(self) -> str:
        """Column of the source table that holds the key."""
        return self.roles.key or self.key_column


def _problems(spec: EmbeddingSpec) -> Iterator[str]:
    """What the single fields cannot say; each sentence names the field and the remedy."""
    if spec.modality != "text":
        if len(spec.columns) != 1:
            yield f"columns: {list(spec.columns)} for {spec.modality}; name the one column with path or bytes"
        if spec.model == EMBEDDED:
            yield f"model: 'embedded' reads text only; name a folder or Hugging Face id for {spec.modality}"
        if spec.scores:
            yield f"scores: {list(spec.scores)} are read from text; remove them or use modality text"
    if len(set(spec.columns)) != len(spec.columns):
        yield f"columns: {list(spec.columns)} has a column twice; name each once"
    if spec.scores and spec.combine != "mean":
        yield "scores: sentiment is a mean over reviews; set combine: mean"
    if spec.roles.recommended and spec.roles.rating:
        yield "roles: recommended and rating are both given; keep the one that is the label"
    for field in ("window_days", "half_life_days"):
        if getattr(spec, field) is None:
            continue
        if spec.combine != "mean":
            yield f"{field}: one row per entity has no window; remove it or set combine: mean"
        if spec.roles.at is None:
            yield f"{field}: needs the time of a row; set roles.at to its column"


class _File(_Strict):
    embeddings: tuple[EmbeddingSpec, ...]


def load_embeddings(path: Path) -> tuple[EmbeddingSpec, ...]:
    """Read and check the declared embeddings; ValueError names every key at fault and the remedy."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); pass the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 (byte {error.start}); save the YAML as UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: is not YAML; {str(error)[:300]}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds no keys; start with `embeddings:` and a list below it")
    try:
        specs = _File.model_validate(data).embeddings
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(_sentences(error, data))) from None
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: embeddings: the name {twice[0]!r} is there twice; give each its own")
    return specs


def find_embedding(specs: tuple[EmbeddingSpec, ...], name: str) -> EmbeddingSpec:
    """The spec called `name`; ValueError lists the names that there are."""
    for spec in specs:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in specs) or "none"
    raise ValueError(f"name: no embedding {name!r} is declared; there are: {known}")


def _sentences(error: ValidationError, data: dict[str, object]) -> Iterator[str]:
    """One sentence per fault, its place written with the embedding's name instead of its number."""
    for fault in error.errors():
        place = ".".join(str(part) for part in _named(fault["loc"], data))
        if fault["type"] == "extra_forbidden":
            yield f"{place}: is no key; remove it or mend its spelling"
        elif fault["type"] == "missing":
            yield f"{place}: is missing; docs/embeddings.md says what it is"
        else:
            said = fault["msg"].removeprefix("Value error, ")
            shown = "" if fault["type"] == "value_error" else f" (got {fault['input']!r:.80})"
            yield f"{place}: {said}{shown}"


def _named(place: tuple[int | str, ...], data: dict[str, object]) -> tuple[int | str, ...]:
    entries = data.get("embeddings")
    if len(place) < 2 or place[0] != "embeddings" or not isinstance(entries, list):
        return place
    entry = entries[int(place[1])]
    name = entry.get("name") if isinstance(entry, dict) else None
    return (f"embeddings[{name or place[1]}]", *place[2:])
