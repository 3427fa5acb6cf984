"""The servers; each is a command: `python -m benchmarks.deciding.peers.NAME --job FILE --port N`."""
