"""Copies each Serve configuration into its RayService, whose `serveConfigV2` is one opaque string.

    python -m k8s.embed          # write k8s/base/rayservice.yaml and k8s/overlays/gpu/serve-config.yaml
    python -m k8s.embed --check  # exit 1 where one is out of date

Kustomize can neither read a file outside its folder nor patch inside a string, so the copy is made here and
kept in the repository; a test compares the two.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Configuration below serve/config → manifest below k8s.
COPIES = {
    "kubernetes.yaml": "base/rayservice.yaml",
    "kubernetes-gpu.yaml": "overlays/gpu/serve-config.yaml",
}
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


def bring_up_to_date(config: Path, manifest: Path, check: bool) -> bool:
    """Whether `manifest` was up to date; writes it where it was not, unless this is a check."""
    before = manifest.read_text(encoding="utf-8")
    after = embed(before, config.read_text(encoding="utf-8"))
    if before == after:
        return True
    if check:
        print(f"{manifest.relative_to(ROOT)} is out of date: run `python -m k8s.embed`", file=sys.stderr)
    else:
        manifest.write_text(after, encoding="utf-8")
        print(f"wrote {manifest.relative_to(ROOT)}")
    return False


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Copy the Serve configurations into their manifests.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if out of date")
    check = parser.parse_args().check
    fresh = [
        bring_up_to_date(ROOT / "serve" / "config" / config, ROOT / "k8s" / manifest, check)
        for config, manifest in COPIES.items()
    ]
    return int(check and not all(fresh))


if __name__ == "__main__":
    sys.exit(main())
