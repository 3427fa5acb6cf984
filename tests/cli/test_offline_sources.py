"""Which log is read; mistakes end in a message that says what to pass, before a run is begun."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from qiance.cli.offline import run_offline
from qiance.settings import Settings, load_settings

EXAMPLES = Path(__file__).parents[2] / "examples"


def settings_of(**data: object) -> Settings:
    return load_settings(None, {}, {"data": {k: v for k, v in data.items() if v is not None}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "hillstrom"}, r"Hillstrom: no file was given.*--path FILE.*minethatdata\.com"),
        ({"source": "hillstrom", "path": "nowhere.csv"}, r"nowhere\.csv: does not exist; .*--path"),
        ({"source": "open-bandit", "path": "nowhere"}, r"nowhere: does not exist"),
        (
            {
                "source": "mapped",
                "path": str(EXAMPLES / "shop_events.csv"),
                "mapping": str(EXAMPLES / "shop_events.map.yaml"),
            },
            r"maps events, and the offline loop learns from responses; .*`kind: responses`",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_before_a_run_is_begun(
    data: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_offline(settings_of(**data), tmp_path, Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"wrong\.csv: .*segment"):
        run_offline(settings_of(source="hillstrom", path=str(file)), tmp_path / "runs", Console(quiet=True))
