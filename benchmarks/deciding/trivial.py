"""A server that answers at once: what the load generator can hold when nothing else is slow.

python -m benchmarks.deciding.trivial --port PORT
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

BODY = b'{"decision_id":"none","actions":[],"degraded":[]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Trivial(asyncio.Protocol):
    """Answers every request of a connection; requests are small, and one is under way at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._transport.write(ANSWER)  # type: ignore[attr-defined]


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", port, backlog=1_024)
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until ended."""
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args(argv).port))


if __name__ == "__main__":
    main()
