"""Publishes dashboards through Grafana's HTTP API, by way of `grafana_api`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from qiance.observe.panels import Json

_T = TypeVar("_T")
TIMEOUT_S = 10.0
MESSAGE_LENGTH = 300  # of Grafana's own words in an error

_REMEDY = {
    400: "where Grafana loads this dashboard from a file or ConfigMap, change it there instead of pushing",
    401: "the token is wrong, expired or revoked; make one under Administration > Service accounts",
    403: "the token's service account may not do this; give it the Editor role",
    404: "no Grafana API is there; if Grafana lives below a path, add the path to the URL",
    412: "another dashboard has this title in the folder, or a plugin owns it; rename or delete that one",
}


class GrafanaError(ValueError):
    """The dashboard was not published; the message says why and what to do, and never holds the token."""


@dataclass(frozen=True, slots=True)
class Published:
    """Where the dashboard is now; `version` counts its saved states in that Grafana."""

    url: str
    uid: str
    version: int


@dataclass(frozen=True, slots=True)
class _Address:
    protocol: str
    host: str
    port: int | None
    prefix: str

    @property
    def origin(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"{self.protocol}://{self.host}{port}"


def push_dashboard(url: str, token: str, dashboard: Json, folder: str | None = None) -> Published:
    """Create the dashboard, or replace the one with the same uid; Grafana keeps the earlier versions.

    url: where Grafana's pages are, e.g. `https://grafana.example.org/grafana`
    token: of a service account with the Editor role
    folder: title of a folder, made if there is none; None is the top level
    Raises GrafanaError when Grafana cannot be reached or refuses.
    """
    address = _parse(url)
    # Imported here: requests is slow to load and nothing else of the command line needs it.
    from grafana_api.grafana_face import GrafanaFace

    _check_token(token)
    face = GrafanaFace(
        auth=token,
        host=address.host,
        port=address.port,
        url_path_prefix=address.prefix,
        protocol=address.protocol,
        timeout=TIMEOUT_S,
    )
    call = _Caller(address.origin, token)
    body: Json = {"dashboard": dashboard, "overwrite": True, "message": "published by qiance"}
    if folder is not None:
        body["folderUid"] = _folder_uid(face, call, folder)
    answer = call("publish the dashboard", lambda: face.dashboard.update_dashboard(body))
    return Published(_page(address, answer), _field(answer, "uid", str), _field(answer, "version", int))


def _parse(url: str) -> _Address:
    remedy = "give it as https://host[:port][/path]"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise GrafanaError(f"url: {error}; {remedy}") from None
    if parts.username is not None or parts.password is not None:
        # The URL is not repeated: it may hold a password.
        raise GrafanaError("url: holds a user or password; leave it out and pass a token")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise GrafanaError(f"url: {url!r} is not the address of a Grafana; {remedy}")
    prefix = parts.path.strip("/")
    return _Address(parts.scheme, f"[{host}]" if ":" in host else host, port, f"{prefix}/" if prefix else "")


def _check_token(token: str) -> None:
    # A line break would let the HTTP library put the token into its error.
    if not token or not all(c.isascii() and c.isprintable() and c != " " for c in token):
        raise GrafanaError("token: is empty or has spaces or line breaks; pass a service account token")


def _folder_uid(face: Any, call: _Caller, title: str) -> str:
    if not title.strip():
        raise GrafanaError("folder: is empty; give its title, or leave it out for the top level")
    for listed in call("list the folders", face.folder.get_all_folders):
        if isinstance(listed, dict) and listed.get("title") == title:
            return _field(listed, "uid", str)
    created = call(f"make the folder {title!r}", lambda: face.folder.create_folder(title))
    return _field(created, "uid", str)


def _page(address: _Address, answer: Any) -> str:
    path = _field(answer, "url", str)
    return f"{address.origin}/{path.lstrip('/')}"


def _field(answer: Any, name: str, kind: type[_T]) -> _T:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, kind):
        raise GrafanaError(
            f"Grafana's answer has no {name!r}; is the URL that of a Grafana, not of a proxy before it?"
        )
    return value


@dataclass(frozen=True, slots=True)
class _Caller:
    """Calls Grafana and turns what goes wrong into one GrafanaError."""

    origin: str
    token: str

    def __call__(self, what: str, request: Callable[[], Any]) -> Any:
        from grafana_api.grafana_api import GrafanaException
        from requests import RequestException

        try:
            return request()
        except GrafanaException as error:
            raise GrafanaError(self._refused(what, error)) from None
        except (ValueError, TypeError, AttributeError):
            # A page instead of JSON; requests' own JSON error is a RequestException too, so this comes first.
            raise GrafanaError(
                f"could not {what}: {self.origin} answers, but not as Grafana's API does; "
                "check the URL and whether a login page or proxy stands before it"
            ) from None
        except RequestException as error:
            # Without the error's text: it may quote the request.
            raise GrafanaError(
                f"could not {what}: {self.origin} cannot be reached ({type(error).__name__}); "
                "check the URL, the network and, for https, the certificate"
            ) from None

    def _refused(self, what: str, error: Any) -> str:
        said = error.response.get("message", "") if isinstance(error.response, dict) else ""
        said = str(said).replace(self.token, "***")[:MESSAGE_LENGTH]
        status = int(error.status_code)
        fallback = "see Grafana's log" if status >= 500 else "see Grafana's message"
        remedy = _REMEDY.get(status, fallback)
        return f"could not {what}: Grafana answers {status}{f' ({said})' if said else ''}; {remedy}"
