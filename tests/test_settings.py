"""Settings: defaults that work, three layers, and mistakes told by key, value and remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qiance.domain import Money
from qiance.settings import (
    Settings,
    SettingsError,
    is_loopback,
    known_keys,
    load_settings,
    require_keys_for,
)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "qiance.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_defaults_work(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings == Settings()
    assert settings.total_budget == Money(150_000, "USD")
    assert settings.ledger_url(tmp_path) == f"sqlite:///{tmp_path}/ledger.db"
    assert settings.key_file(tmp_path) == tmp_path / "secrets" / "pseudonym.key"
    assert load_settings(write(tmp_path, ""), {}, {}) == settings
    assert load_settings(write(tmp_path, "serve:\n")) == settings


def test_every_key_is_described() -> None:
    assert [key for key, description in known_keys().items() if not description] == []


def test_the_last_layer_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nserve:\n  port: 1\n  holdout: 0.2\ntraining: {hidden: [8]}\n")
    env = {
        "QIANCE__SERVE__PORT": "2",
        "QIANCE__SEED": "2",
        "QIANCE__TRAINING__HIDDEN": "[16, 4]",
        "QIANCE__TRAINING__LEARNING_RATE": "1e-2",
        "QIANCE__RL__ENABLED": "false",
        "QIANCE__LLM__MODEL": "",
        "PATH": "/bin",
    }
    settings = load_settings(path, env, {"serve.port": 3, "market": {"live_days": 2}})
    assert (settings.seed, settings.serve.port, settings.serve.holdout) == (2, 3, 0.2)
    assert settings.training.hidden == (16, 4)
    assert settings.training.learning_rate == 0.01
    assert settings.rl.enabled is False
    assert settings.llm.model == "embedded"
    assert settings.market.live_days == 2


def test_null_clears_a_setting(tmp_path: Path) -> None:
    path = write(tmp_path, "ledger: {url: 'sqlite:///a.db'}\n")
    assert load_settings(path).ledger.url == "sqlite:///a.db"
    assert load_settings(path, {"QIANCE__LEDGER__URL": "null"}).ledger.url is None


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"QIANCE__SERVE__PORT": "http"}, r"port: 'http' .*\(from QIANCE__SERVE__PORT\); set serve.port to"),
        ({"QIANCE__SERVE__PORT": "70000"}, "serve.port: '70000' should be less than or equal to 65535"),
        ({"QIANCE__SERVE__PROT": "1"}, r"serve.prot: unknown key .*SERVE__PROT\); did you mean serve.port\?"),
        ({"QIANCE__SREVE__PORT": "1"}, "sreve.port: unknown key .* did you mean serve.port"),
        ({"QIANCE__SERVE": "1"}, "serve: unknown key"),
        ({"QIANCE__ZZZ": "1"}, "zzz: unknown key .*known keys: .*serve.port"),
        ({"QIANCE__SERVE__HOLDOUT": "nan"}, "serve.holdout: 'nan' should be"),
        ({"QIANCE__SERVE__HOLDOUT": "1.5"}, "serve.holdout: '1.5' should be less than or equal to 1"),
        ({"QIANCE__DATA__SOURCE": "hilstrom"}, "data.source: 'hilstrom' should be .*, perhaps 'hillstrom'"),
        ({"QIANCE__DATA__SOURCE": "mapped"}, "data.path: None, but data.source is mapped; set data.path"),
        ({"QIANCE__TRAINING__HIDDEN": "[64, 0]"}, "training.hidden.1: 0 should be greater than"),
        ({"QIANCE__TRAINING__HIDDEN": "[64"}, r"training.hidden: '\[64' in QIANCE__TRAINING__HIDDEN is not"),
        ({"QIANCE__TRAINING__HEADS": "1"}, "training.heads: '1' should be greater than or equal to 2"),
        ({"QIANCE__BUDGET__AMOUNT": "-5"}, "budget.amount: '-5' should be a positive amount"),
        ({"QIANCE__BUDGET__AMOUNT": "lots"}, "budget.amount: 'lots' should be a positive amount"),
        ({"QIANCE__CURRENCY": "dollar"}, "currency: 'dollar' .*set currency to: ISO 4217"),
        ({"QIANCE__TENANT": "a b"}, "tenant: 'a b'"),
    ],
)  # fmt: skip
def test_mistakes_in_the_environment(env: Mapping[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(env=env)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("serve: {port: true}", "serve.port: True should be a number, not true or false .*qiance.yaml"),
        ("serve: {port: 80.5}", "serve.port: 80.5 should be a valid integer"),
        ("serve: 8000", "serve: 8000 is not a section; write its keys below it"),
        ("serve: {prot: 1}", r"serve.prot: unknown key \(from .*qiance.yaml\); did you mean serve.port"),
        ("1: 2", "1: unknown key"),
        ("budget: {amount: 1500.00}", r"budget.amount: 1500.0 is a float, .*; put it in quotes"),
        ("budget: {amount: .nan}", "budget.amount: nan is a float"),
        ("budget: {amount: '1e400'}", "budget.amount: '1e400' should be a positive amount"),
        ("seed: 1\nseed: 2", r"seed: given twice \(line 2\); keep one"),
        ("serve:\n  port: 1\n  port: 2", r"port: given twice \(line 3\)"),
        ("- a\n- b", "holds a list; write keys such as"),
        ("a: [", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(write(tmp_path, text))


def test_a_whole_number_of_money_needs_no_quotes(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "budget: {amount: 1500}")).total_budget == Money(150_000)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides={"serve.port": -1, "rl.users": 0})
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read .*; name an existing YAML file"):
        load_settings(tmp_path / "none.yaml")


def test_settings_do_not_change_after_loading() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.serve.port = 1


def test_secrets_stay_out_of_reports_and_messages() -> None:
    env = {
        "QIANCE__LEDGER__URL": "postgresql+psycopg://shop:hunter2@db/q?password=hunter2&sslmode=require",
        "QIANCE__GRAFANA__TOKEN": "hunter2",
    }
    settings = load_settings(env=env)
    report = json.dumps(settings.redacted())
    assert "hunter2" not in report
    assert "hunter2" not in repr(settings.grafana)
    assert (
        settings.redacted()["ledger"]["url"]
        == "postgresql+psycopg://shop:***@db/q?password=***&sslmode=require"
    )
    assert settings.redacted()["grafana"]["token"] == "***"
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides={"ledger": {"url": ["hunter2"]}, "grafana.token": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    require_keys_for(host, has_keys=False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "shop.example", "", "127.0.0.1.evil.example"]
)
def test_other_hosts_need_a_key(host: str) -> None:
    require_keys_for(host, has_keys=True)
    with pytest.raises(SettingsError, match=r"serve.host: .* `qiance keys create"):
        require_keys_for(host, has_keys=False)


def test_redacted_is_plain_data() -> None:
    plain: dict[str, Any] = load_settings().redacted()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["grafana"] == {"url": None, "token": None}
