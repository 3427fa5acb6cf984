"""Publishing, against a small HTTP server that speaks the endpoints of Grafana's API that are used."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qiance.cli.dashboards import app
from qiance.observe import GrafanaError, decisions_dashboard, push_dashboard

TOKEN = "glsa_a-very-secret-token"


@dataclass
class FakeGrafana:
    """Folders and dashboards by uid; `answer` overrides the next answers with (status, body)."""

    prefix: str = ""
    port: int = 0
    folders: dict[str, str] = field(default_factory=dict)
    boards: dict[str, dict[str, Any]] = field(default_factory=dict)
    answer: tuple[int, bytes] | None = None
    seen: list[tuple[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def handle(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        self.seen.append((method, path))
        if self.answer is not None:
            return self.answer
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        if not path.startswith(f"{self.prefix}/api"):
            return 404, {"message": "Not found"}
        match method, path.removeprefix(f"{self.prefix}/api"):
            case "GET", "/folders":
                return 200, [{"uid": uid, "title": title} for uid, title in self.folders.items()]
            case "POST", "/folders":
                uid = f"f{len(self.folders)}"
                self.folders[uid] = body["title"]
                return 200, {"uid": uid, "title": body["title"]}
            case "POST", "/dashboards/db":
                return self._save(body)
        return 404, {"message": "Not found"}

    def _save(self, body: Any) -> tuple[int, Any]:
        uid = body["dashboard"]["uid"]
        before = self.boards.get(uid)
        if before is not None and not body["overwrite"]:
            return 412, {"status": "version-mismatch", "message": "changed by someone else"}
        version = before["version"] + 1 if before else 1
        self.boards[uid] = {**body, "version": version}
        return 200, {"uid": uid, "version": version, "url": f"{self.prefix}/d/{uid}/x", "status": "success"}


@pytest.fixture(params=["", "/grafana"])
def grafana(request: pytest.FixtureRequest) -> Iterator[FakeGrafana]:
    fake = FakeGrafana(prefix=request.param)

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, content = fake.handle(self.command, self.path, self.headers["Authorization"], body)
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = _serve  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield fake
        server.shutdown()
        thread.join()


def test_the_dashboard_arrives_whole_and_again_as_a_new_version(grafana: FakeGrafana) -> None:
    board = decisions_dashboard()
    first = push_dashboard(grafana.url, TOKEN, board)
    second = push_dashboard(grafana.url + "/", TOKEN, board)
    assert grafana.boards["qiance-decisions"]["dashboard"] == board
    assert (first.version, second.version) == (1, 2)
    assert second.url == f"{grafana.url}/d/qiance-decisions/x"


def test_a_folder_is_made_once_and_found_afterwards(grafana: FakeGrafana) -> None:
    grafana.folders["other"] = "Other"
    for _ in range(2):
        push_dashboard(grafana.url, TOKEN, decisions_dashboard(), folder="市场 Qiance")
    assert sorted(grafana.folders.values()) == ["Other", "市场 Qiance"]
    assert grafana.folders[grafana.boards["qiance-decisions"]["folderUid"]] == "市场 Qiance"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((400, b'{"message": "Cannot save provisioned dashboard"}'), "provisioned dashboard.*ConfigMap"),
        ((401, b'{"message": "Invalid API key"}'), "answers 401 .*expired or revoked"),
        ((403, b'{"message": "no access"}'), "answers 403 .*Editor role"),
        ((404, b'{"message": "Not found"}'), "answers 404 .*add the path"),
        ((412, b'{"message": "name exists"}'), "answers 412 .name exists.*rename or delete"),
        ((500, b'{"message": "database is locked"}'), "answers 500 .database is locked.*Grafana's log"),
        ((502, b"<html>a message from a proxy</html>"), "login page or proxy"),
        ((200, b"<html>please log in</html>"), "login page or proxy"),
        ((200, b"[]"), "has no 'url'"),
        ((200, b'{"url": "/d/x", "uid": 7, "version": 1}'), "has no 'uid'"),
        ((401, json.dumps({"message": f"bad key {TOKEN}"}).encode()), r"bad key \*\*\*"),
    ],
)
def test_a_refusal_names_the_remedy_and_never_the_token(
    grafana: FakeGrafana, answer: tuple[int, bytes], expected: str
) -> None:
    grafana.answer = answer
    with pytest.raises(GrafanaError, match=expected) as caught:
        push_dashboard(grafana.url, TOKEN, decisions_dashboard())
    assert TOKEN not in str(caught.value)


def test_a_wrong_token_is_refused_by_the_server(grafana: FakeGrafana) -> None:
    with pytest.raises(GrafanaError, match=r"answers 401 .Invalid API key"):
        push_dashboard(grafana.url, "another", decisions_dashboard())
    assert grafana.boards == {}


def test_an_address_where_nobody_listens_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(GrafanaError, match=rf"http://127.0.0.1:{port} cannot be reached \(ConnectionError\)"):
        push_dashboard(f"http://127.0.0.1:{port}", TOKEN, decisions_dashboard())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grafana.example.org", "not the address"),
        ("ftp://grafana.example.org", "not the address"),
        ("http://", "not the address"),
        ("http://host/d/x?orgId=1", "not the address"),
        ("http://host:99999", "[Pp]ort"),
        ("http://user:hunter2@host", "leave it out"),
    ],
)
def test_a_bad_url_is_refused_before_anything_is_sent(url: str, expected: str) -> None:
    with pytest.raises(GrafanaError, match=expected) as caught:
        push_dashboard(url, TOKEN, decisions_dashboard())
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "two words", f"{TOKEN}\n", "token\r\nX-Evil: 1", "ключ"])
def test_a_bad_token_is_refused_without_showing_it(grafana: FakeGrafana, token: str) -> None:
    with pytest.raises(GrafanaError, match="token: is empty or has spaces") as caught:
        push_dashboard(grafana.url, token, decisions_dashboard())
    assert grafana.seen == []
    assert not token or token not in str(caught.value)


def test_an_empty_folder_is_refused(grafana: FakeGrafana) -> None:
    with pytest.raises(GrafanaError, match="folder: is empty"):
        push_dashboard(grafana.url, TOKEN, decisions_dashboard(), folder=" ")


def test_the_command_publishes(grafana: FakeGrafana) -> None:
    done = CliRunner().invoke(
        app, ["push", "--url", grafana.url, "--folder", "Q"], env={"QIANCE__GRAFANA__TOKEN": TOKEN}
    )
    assert done.exit_code == 0, done.output
    assert f"{grafana.url}/d/qiance-decisions/x" in done.output
    assert "Q" in grafana.folders.values()


def test_a_dry_run_calls_nobody(grafana: FakeGrafana) -> None:
    done = CliRunner().invoke(app, ["push", "--url", grafana.url, "--folder", "Q", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "would publish" in done.output
    assert "folder 'Q'" in done.output
    assert grafana.seen == []


def test_the_command_fails_in_one_line_without_the_token() -> None:
    done = CliRunner().invoke(app, ["push", "--url", "nonsense", "--token", TOKEN])
    assert done.exit_code == 1
    assert done.output.startswith("error: url: 'nonsense'")
    assert len(done.output.splitlines()) == 1
    assert TOKEN not in done.output


def test_show_prints_what_is_pushed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["show"])
    assert json.loads(done.output) == decisions_dashboard()
    out = tmp_path / "board.json"
    assert CliRunner().invoke(app, ["show", "--out", str(out)]).exit_code == 0
    assert out.read_text(encoding="utf-8") == done.output
    missing = CliRunner().invoke(app, ["show", "--out", str(tmp_path / "no" / "x.json")])
    assert missing.exit_code == 1
    assert "name another file" in missing.output
