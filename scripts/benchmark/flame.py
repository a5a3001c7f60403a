"""A flame graph (SVG) of what py-spy saw (`-f raw`): only the event loop's work on requests and the audit thread's.

Arguments: the file of py-spy, the picture. See docs/performance.md for the command that makes the first.
"""

from __future__ import annotations

import html
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Final

WIDTH: Final = 1200
ROW: Final = 17
LEAST: Final = 0.002
"""A smaller share of the whole is not drawn."""
_ROOMS: Final = {
    "token": "#cc6677",
    "iam": "#ddcc77",
    "service": "#88ccee",
    "domain": "#44aa99",
    "audit": "#aa4499",
    "api": "#117733",
    "telemetry": "#999933",
}
_ROOTS: Final = ("data_received (", "_turn (hsmkms/api", "_settle (hsmkms/api", "_run (hsmkms/audit")


class _Node:
    def __init__(self) -> None:
        self.count = 0
        self.below: dict[str, _Node] = defaultdict(_Node)

    def add(self, stack: list[str], count: int) -> None:
        self.count += count
        if stack:
            self.below[stack[0]].add(stack[1:], count)

    @property
    def depth(self) -> int:
        return 1 + max((node.depth for node in self.below.values()), default=0)


def main() -> None:
    """Draw."""
    root = _Node()
    for line in Path(sys.argv[1]).read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        start = next((place for place, frame in enumerate(frames) if any(part in frame for part in _ROOTS)), None)
        # The audit thread that only waits for work is no work.
        if start is not None and not any("_take (hsmkms/audit" in frame for frame in frames):
            root.add(frames[start:], int(count))
    height = ROW * root.depth + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="4" y="14">{root.count} samples; width is the share of them</text>',
    ]
    _draw(root, 0.0, 0, root.count, parts)
    Path(sys.argv[2]).write_text("\n".join([*parts, "</svg>"]) + "\n")


def _draw(node: _Node, left: float, row: int, whole: int, parts: list[str]) -> None:
    for name, child in sorted(node.below.items(), key=lambda one: -one[1].count):
        share = child.count / whole
        if share < LEAST:
            continue
        x, y, width = left * WIDTH, 20 + row * ROW, share * WIDTH
        room = re.search(r"hsmkms/(\w+)/", name)
        color = _ROOMS.get(room[1], "#bbbbbb") if room else "#dddddd"
        label = html.escape(name[: max(0, int(width / 6.2))])
        parts.append(
            f'<g><title>{html.escape(name)}: {share:.1%}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}"'
            f' height="{ROW - 1}" fill="{color}"/><text x="{x + 2:.1f}" y="{y + 12}">{label}</text></g>'
        )
        _draw(child, left, row + 1, whole, parts)
        left += share


main()
