#!/usr/bin/env bash
# Compares two results of `cargo bench` (target/bench/*.json): each figure of the second divided by that of the first.
#
#   scripts/bench-compare.sh A.json B.json [TEXT]     all figures, or those whose name contains TEXT
#
# The last column corrects for other activity on the machine: the ratio of times and rates, divided by that of the baseline
# ("bridge" at the same shape). If the two runs were not interleaved, only that column is meaningful.
set -euo pipefail

if (($# < 2 || $# > 3)); then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
command -v python3 >/dev/null || { echo "python3 is needed" >&2; exit 2; }

exec python3 - "$@" <<'PYTHON'
import json
import sys

SKIPPED = ("rounds", "goals", "machine")


def figures(value, path=()):
    """Yields all numbers of a document with their paths."""
    if isinstance(value, dict):
        for name, member in value.items():
            if name not in SKIPPED:
                yield from figures(member, (*path, name))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


def by_floor(ratio, path, before, after):
    """Formats the ratio of a figure divided by that of the bridge at the same shape."""
    if path[0] != "ways" or path[-1] not in ("p50_us", "p99_us", "calls_per_second", "cpu_us_per_call"):
        return ""
    shape = path[1].split(" ")
    shape = " ".join(shape[-2:]) if shape[-1] in ("KiB", "MiB") else shape[-1]
    floor = ("ways", f"bridge {shape}", path[-1])
    if not before.get(floor) or not after.get(floor):
        return ""
    return f"{ratio / (after[floor] / before[floor]):8.2f}"


def main():
    before, after = (dict(figures(json.load(open(name, encoding="utf-8")))) for name in sys.argv[1:3])
    wanted = sys.argv[3] if len(sys.argv) > 3 else ""
    print(f"{'figure':<56} {'A':>12} {'B':>12} {'B/A':>8} {'by floor':>8}")
    for path, first in before.items():
        name = " / ".join(path[1:] if path[0] == "ways" else path)
        second = after.get(path)
        if second is None or wanted not in name:
            continue
        ratio = second / first if first else None
        shown = f"{ratio:8.2f}" if ratio is not None else f"{'-':>8}"
        floor = by_floor(ratio, path, before, after) if ratio is not None else ""
        print(f"{name:<56} {first:>12.2f} {second:>12.2f} {shown} {floor}")


main()
PYTHON
