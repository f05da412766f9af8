"""Pages speak of each other by name (docs/data.md), as they are read in an editor; on the site these are links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"\s*(```|~~~)")
# Code of a line and links that are written out stay as they are; else a name of a page.
_PART = re.compile(r"(`[^`]*`|\[[^\]]*\]\([^)]*\))|(?<![\w/.-])(?:docs/)?([a-z_]+)\.md\b")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """What mkdocs calls with each page before it is rendered."""
    folder = Path(config["docs_dir"])
    up = "../" * page.file.src_uri.count("/")
    own = Path(page.file.src_uri).name

    def link(match: re.Match[str]) -> str:
        name = match[2]
        is_page = name is not None and f"{name}.md" != own and (folder / f"{name}.md").is_file()
        return f"[{name.replace('_', ' ')}]({up}{name}.md)" if is_page else match[0]

    lines, is_code = [], False
    for line in markdown.split("\n"):
        if _FENCE.match(line):
            is_code = not is_code
        is_text = not is_code and not line.startswith(("    ", "#"))
        lines.append(_PART.sub(link, line) if is_text else line)
    return "\n".join(lines)
