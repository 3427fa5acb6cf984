"""API keys in the ledger and on the command line."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qiance.cli.keys import app
from qiance.ledger import Ledger, Scope
from qiance.settings import load_settings

runner = CliRunner()


def test_a_key_opens_what_its_scopes_say(ledger: Ledger) -> None:
    assert not ledger.has_keys()
    token = ledger.create_key("shop", [Scope.DECIDE, "outcomes"])
    assert re.fullmatch(r"qk_[A-Za-z0-9_-]{43}", token)
    principal = ledger.verify_key(token)
    assert principal is not None
    assert (principal.name, principal.tenant) == ("shop", "default")
    assert [scope.value for scope in Scope if principal.may(scope)] == ["decide", "outcomes"]
    admin = ledger.verify_key(ledger.create_key("root", ["admin"]))
    assert admin is not None
    assert all(admin.may(scope) for scope in Scope)


@pytest.mark.parametrize("token", ["", "qk_", "qk_" + "A" * 43, "nul\x00", "\ud800", "x" * 100_000])
def test_no_other_token_opens_anything(ledger: Ledger, token: str) -> None:
    ledger.create_key("shop", ["admin"])
    assert ledger.verify_key(token) is None


def test_a_revoked_key_is_dead_and_its_name_is_free(ledger: Ledger) -> None:
    old = ledger.create_key("shop", ["read"])
    with pytest.raises(ValueError, match="name: 'shop' is an active key"):
        ledger.create_key("shop", ["admin"])
    ledger.revoke_key("shop", by="mei")
    assert ledger.verify_key(old) is None
    assert not ledger.has_keys()
    new = ledger.create_key("shop", ["write"])
    assert ledger.verify_key(old) is None
    assert ledger.verify_key(new) is not None
    revoked, active = ledger.keys()
    assert revoked.revoked_at is not None
    assert active.revoked_at is None
    assert active.scopes == {Scope.WRITE}
    assert [line.event for line in ledger.audit_lines()] == ["key.created", "key.revoked", "key.created"]
    ledger.revoke_key("shop")
    with pytest.raises(ValueError, match="name: 'shop' is not an active key"):
        ledger.revoke_key("shop")


@pytest.mark.parametrize(
    ("name", "scopes", "message"),
    [
        (
            "shop",
            [],
            "scopes: give at least one of decide, outcomes, read, write, events, privacy, approve, admin",
        ),
        ("shop", ["root"], "scopes: 'root' is not one of decide"),
        ("", ["read"], "name: is empty"),
        ("x" * 201, ["read"], "name: .* has 201 characters"),
    ],
)
def test_bad_keys_are_refused(ledger: Ledger, name: str, scopes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ledger.create_key(name, scopes)
    assert ledger.keys() == []


def test_the_token_is_nowhere_in_the_file(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'l.db'}", key=b"k" * 32)
    token = ledger.create_key("shop", ["read"])
    ledger.close()
    assert token.encode() not in (tmp_path / "l.db").read_bytes()


def test_the_command_line_makes_lists_and_revokes(tmp_path: Path) -> None:
    def keys(*words: str) -> str:
        result = runner.invoke(app, [*words, "--workspace", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "loopback only" in keys("list")
    token = keys("create", "web-shop", "--scope", "decide", "-s", "outcomes").strip()
    ledger = Ledger.from_settings(load_settings(), tmp_path)
    principal = ledger.verify_key(token)
    assert principal is not None
    assert principal.scopes == {Scope.DECIDE, Scope.OUTCOMES}
    assert "web-shop" in keys("list")
    assert token not in keys("list")
    keys("revoke", "web-shop")
    assert ledger.verify_key(token) is None
    ledger.close()


def test_bootstrap_makes_the_first_key_once(tmp_path: Path) -> None:
    out = tmp_path / "keys" / "admin.key"
    words = ["bootstrap", "--workspace", str(tmp_path), "--out", str(out)]
    first, second = runner.invoke(app, words), runner.invoke(app, words)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "nothing changed" in second.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    ledger = Ledger.from_settings(load_settings(), tmp_path)
    admin = ledger.verify_key(out.read_text().strip())
    assert admin is not None
    assert admin.may(Scope.ADMIN)
    assert len(ledger.keys()) == 1
    ledger.close()


def test_command_line_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = ["--workspace", str(tmp_path)]
    taken = tmp_path / "taken"
    taken.write_text("")
    cases = [
        (["revoke", "nobody", *at], "error: name: 'nobody' is not an active key"),
        (["create", "x", "-s", "read", "--out", str(taken), *at], "taken: File exists; name another file"),
        (["list", "--config", str(tmp_path / "no.yaml"), *at], "no.yaml: cannot be read"),
    ]
    for words, message in cases:
        result = runner.invoke(app, words)
        assert result.exit_code == 1
        assert message in result.stderr
        assert "Traceback" not in result.output
    assert "No keys" in runner.invoke(app, ["list", *at]).stdout
    monkeypatch.setenv("QIANCE__LEDGER__URL", "mysql://root:secret@host/x")
    result = runner.invoke(app, ["list", *at])
    assert "ledger.url: 'mysql' is not supported" in result.stderr
    assert "secret" not in result.output
