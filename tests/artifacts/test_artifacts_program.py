"""Programs: any batch size, and nothing that would need pickle or run foreign code is loaded."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qiance.artifacts import (
    Artifact,
    ArtifactError,
    EffectInfo,
    EffectModel,
    export_program,
    load_program,
    write_artifact,
)
from qiance.artifacts.effect import ENCODER, INFO, KIND, PROGRAM
from qiance.features.encoder import Encoder
from qiance.features.schema import FeatureSchema

SCHEMA = FeatureSchema("decisions", ("recency", "baskets"), ("channel",))


class Small(nn.Module):
    """Two numbers and a code to `[B, 3 heads, 2 tasks]`."""

    def __init__(self, rows: int, codes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, 2)
        self.linear = nn.Linear(rows + 2, 6)

    def forward(self, num: Tensor, cat: Tensor) -> Tensor:
        x = torch.cat([num, self.embedding(cat[:, 0])], dim=1)
        return torch.sigmoid(self.linear(x)).reshape(-1, 3, 2)


def _columns(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "recency": random.normal(20, 5, n),
        "baskets": random.integers(0, 9, n),
        "channel": random.choice(["email", "mailer"], n),
    }


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    encoder = Encoder.fit(SCHEMA, _columns(100))
    num, cat = encoder.encode(_columns(7))
    module = Small(encoder.num_width, encoder.cardinalities[0])
    inputs = {"num": torch.from_numpy(num), "cat": torch.from_numpy(cat)}
    info = EffectInfo(("click", "conversion"), 3, (8,), True, 1.5, {"click": 1.5, "conversion": 1.2})
    return write_artifact(
        tmp_path_factory.mktemp("artifacts"),
        KIND,
        {
            PROGRAM: lambda path: export_program(module, inputs, path),
            ENCODER: lambda path: path.write_text(json.dumps(encoder.to_dict())) and None,
            INFO: lambda path: path.write_text(json.dumps(info.to_dict())) and None,
        },
        metrics={},
        feature_service=SCHEMA.service,
        schema_hash=SCHEMA.hash,
        data_fingerprint="d",
    )


@pytest.mark.parametrize("n", [0, 1, 2, 500, 40_000])
def test_any_number_of_rows(artifact: Artifact, n: int) -> None:
    model = EffectModel.load(artifact.path, expect=SCHEMA)
    draws = model.predict(_columns(n))
    assert draws.click.shape == draws.conversion.shape == draws.sales.shape == (n, 3)
    assert draws.click.dtype == draws.margin.dtype == np.float32
    assert np.isfinite(draws.click).all()
    assert np.isnan(draws.sales).all()
    if n:
        one = model.predict({name: values[:1] for name, values in _columns(n).items()})
        np.testing.assert_allclose(draws.click[:1], one.click, rtol=1e-6)


def test_what_the_model_says_about_itself(artifact: Artifact) -> None:
    model = EffectModel.load(artifact.path, threads=2)
    assert model.tasks == ("click", "conversion")
    assert (model.heads, model.width_scale, model.version) == (3, 1.5, artifact.version)
    assert model.schema == SCHEMA
    with pytest.raises(ValueError, match="column 'channel' is missing"):
        model.predict({name: values for name, values in _columns(3).items() if name != "channel"})
    with pytest.raises(ValueError, match="threads: 0 is not positive"):
        EffectModel.load(artifact.path, threads=0)


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        (FeatureSchema("decisions", ("recency",), ("channel",)), "numeric feature 'baskets' is not expected"),
        (
            FeatureSchema("decisions", ("recency", "baskets", "age"), ("channel",)),
            "numeric feature 'age' is missing",
        ),
        (
            FeatureSchema("decisions", ("baskets", "recency"), ("channel",)),
            "feature 'recency' stands at place 1 where 'baskets' is expected",
        ),
        (
            FeatureSchema("decisions", ("recency",), ("baskets", "channel")),
            "feature 'baskets' is numeric where categorical is expected",
        ),
        (FeatureSchema("other", ("recency", "baskets"), ("channel",)), "feature service is 'decisions'"),
    ],
)
def test_another_schema_is_refused(artifact: Artifact, expect: FeatureSchema, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        EffectModel.load(artifact.path, expect=expect)


def test_a_tampered_program_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / artifact.path.name
    copy.mkdir()
    for source in artifact.path.iterdir():
        (copy / source.name).write_bytes(source.read_bytes())
    program = copy / PROGRAM
    content = bytearray(program.read_bytes())
    content[len(content) // 2] ^= 1
    program.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"file 'program\.pt2' was changed"):
        EffectModel.load(copy)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    other = write_artifact(
        tmp_path,
        "policy",
        {"a": lambda path: path.write_text("a") and None},
        metrics={},
        feature_service="s",
        schema_hash="h",
        data_fingerprint="d",
    )
    with pytest.raises(ArtifactError, match="is of kind 'policy'"):
        EffectModel.load(other.path)


def test_the_archive_holds_no_pickle_and_no_path(artifact: Artifact) -> None:
    with zipfile.ZipFile(artifact.path / PROGRAM) as archive:
        for info in archive.infolist():
            content = archive.read(info)
            assert not content.startswith((b"\x80\x02", b"\x80\x04", b"PK")), info.filename
            assert b".py" not in content, info.filename


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran foreign code",))


def _rewrite(
    source: Path, target: Path, change: Callable[[str, bytes], bytes | None], **extra: bytes
) -> None:
    """Copy an archive, passing each member (by its name below the top folder) through `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = change(info.filename.partition("/")[2], old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
        for name, content in extra.items():
            new.writestr(f"program/{name}", content)


def _edit(member: str, edit: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if name != member:
            return content
        record = json.loads(content)
        edit(record)
        return json.dumps(record).encode()

    return change


def _pickled(record: Any) -> None:
    next(iter(record["config"].values()))["use_pickle"] = True


def _opaque(record: Any) -> None:
    record["config"]["x"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False}


def _operator(record: Any) -> None:
    record["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"


def _file_operator(record: Any) -> None:
    record["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def _expression(record: Any) -> None:
    text = json.dumps(record)
    start = text.index('"expr_str": "') + len('"expr_str": "')
    end = text.index('"', start)
    evil = "__import__('os').getpid()"
    changed = json.loads(text[:start] + evil + text[end:])
    record.clear()
    record.update(changed)


def _samples(name: str, content: bytes) -> bytes:
    return pickle.dumps(_Bomb()) if name == "data/sample_inputs/model.pt" else content


_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_samples, "'data/sample_inputs/model.pt' is a pickle"),
        (_edit(_WEIGHTS, _pickled), "is stored as a pickle"),
        (_edit(_CONSTANTS, _opaque), "'x' is stored as a pickle"),
        (_edit("models/model.json", _operator), "operator 'torch.hub.load' is not an ATen operator"),
        (_edit("models/model.json", _file_operator), "is not an ATen operator"),
        (_edit("models/model.json", _expression), "is not plain arithmetic"),
        (lambda name, content: None if name == "models/model.json" else content, "models/model.json"),
    ],
)
def test_archives_that_could_run_code_are_refused(
    artifact: Artifact,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[str, bytes], bytes | None],
    message: str,
) -> None:
    target = tmp_path / "program.pt2"
    _rewrite(artifact.path / PROGRAM, target, change)
    with pytest.raises(ArtifactError, match=message):
        load_program(target)
    assert "ran foreign code" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["data/weights/model.pt", "data/aotinductor/model/a.so", "version"])
def test_members_of_other_formats_are_refused(artifact: Artifact, tmp_path: Path, name: str) -> None:
    target = tmp_path / "program.pt2"
    _rewrite(artifact.path / PROGRAM, target, lambda _, content: content, **{name: b"x"})
    with pytest.raises(ArtifactError, match=f"member '{name}' is not part of a plain exported program"):
        load_program(target)


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps({"a": 1})])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "program.pt2"
    target.write_bytes(content)
    with pytest.raises(ArtifactError, match="refused"):
        load_program(target)
