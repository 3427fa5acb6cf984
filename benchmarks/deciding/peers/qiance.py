"""The product as `qiance up` serves it: its application, its own launcher, its Serve YAML."""

from __future__ import annotations

from benchmarks.deciding.peers.command import read_command, wait_for_end

# In overload, of the engine, so that a client waits at most 50 ms: the door and the way take the rest.
TARGET_MS = 28.0


def main() -> None:
    """Serve until ended."""
    command = read_command()
    from serve.launch import EMBEDDED, LocalCluster, read_config

    batching = {"target_ms": TARGET_MS}
    args = {**command.args, "topology": command.options["topology"], "batching": batching}
    with LocalCluster() as cluster:
        cluster.serve(read_config(EMBEDDED, "127.0.0.1", command.port, args))
        how = "HAProxy" if cluster.transport is not None and cluster.transport.haproxy else "plain"
        print(f"transport: {how}", flush=True)
        wait_for_end()


if __name__ == "__main__":
    main()
