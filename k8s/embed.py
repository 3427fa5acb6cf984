"""Copies serve/config/kubernetes.yaml into the RayService, whose `serveConfigV2` is one opaque string.

    python -m k8s.embed          # write k8s/base/rayservice.yaml
    python -m k8s.embed --check  # exit 1 where it is out of date

Kustomize can neither read a file outside its folder nor patch inside a string, so the copy is made here and
kept in the repository; a test compares the two.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "serve" / "config" / "kubernetes.yaml"
MANIFEST = ROOT / "k8s" / "base" / "rayservice.yaml"
KEY = "  serveConfigV2: |"
INDENT = "    "


def embed(manifest: str, config: str) -> str:
    """`manifest` with the block below `serveConfigV2: |` replaced by `config`; all other lines stay.

    Raises ValueError where the manifest does not have exactly one such key.
    """
    lines = manifest.splitlines()
    keys = [number for number, line in enumerate(lines) if line == KEY]
    if len(keys) != 1:
        raise ValueError(f"the manifest has the line {KEY!r} {len(keys)} times; it must stand there once")
    start = keys[0] + 1
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith(INDENT)):
        end += 1
    block = textwrap.indent(config.strip("\n"), INDENT).splitlines()
    return "\n".join([*lines[:start], *block, *lines[end:]]) + "\n"


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Copy the Serve YAML into the RayService manifest.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if out of date")
    check = parser.parse_args().check
    before = MANIFEST.read_text(encoding="utf-8")
    after = embed(before, CONFIG.read_text(encoding="utf-8"))
    if check and before != after:
        print(f"{MANIFEST.relative_to(ROOT)} is out of date: run `python -m k8s.embed`", file=sys.stderr)
        return 1
    if before != after:
        MANIFEST.write_text(after, encoding="utf-8")
        print(f"wrote {MANIFEST.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
