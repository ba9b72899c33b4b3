"""Check that the relative links of the pages resolve.

    python scripts/check_links.py [PAGE ...]

A link's file must exist, and its ``#section`` must be a heading of the page that it leads to.
Absolute URLs are left alone. Without arguments: README.md, CONTRIBUTING.md and all of docs/.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from eval.cli import run_command

ROOT = Path(__file__).parents[1]
_CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)")  # [text](target "title"), images
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)  # [name]: target
_HTML = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=[\"']([^\"']+)", re.IGNORECASE)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def pages() -> list[Path]:
    """Those that are checked without arguments."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def broken(page: Path) -> Iterator[str]:
    """The links of a page that lead nowhere, each with what is wrong."""
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    for pattern in (_LINK, _REFERENCE, _HTML):
        for target in pattern.findall(text):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = page if not parts.path else page.parent / unquote(parts.path)
            if not path.exists():
                yield f"{target}: there is no {path}"
            elif parts.fragment and path.suffix == ".md" and parts.fragment not in anchors(path):
                yield f"{target}: {path} has no such heading"


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(
        r"^(```|~~~).*?^\1[^\n]*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def main(argv: Sequence[str]) -> int:
    """Print the broken links; the exit code is 1 if there are any."""
    found = [
        f"{page}: {problem}" for page in map(Path, argv or pages()) for problem in broken(page)
    ]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
