"""Hook of mkdocs.yml: the documents that lie outside docs/ become pages, and links between the two stay right.

README.md is the first page. A link to what is no page, a file of code or a folder, becomes its name in the text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def pages() -> dict[str, str]:
    """Return by its path in the repository where each document stands on the site."""
    found = {path.relative_to(ROOT).as_posix(): path.name for path in sorted(ROOT.glob("docs/*.md"))}
    for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("harness/**/README.md"))]:
        name = path.relative_to(ROOT).as_posix()
        found[name] = "index.md" if name == "README.md" else name
    return found


def on_files(files: Files, config: Any) -> Files:
    """Add the documents outside docs/."""
    for source, page in pages().items():
        if not source.startswith("docs/"):
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links from places in the repository to places on the site."""
    there = pages()
    (source,) = (source for source, place in there.items() if place == page.file.src_uri)

    def on_site(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups()
        name = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / name).exists():
            return link[0]  # mkdocs says so
        place = there.get(name, name.removeprefix("docs/") if (ROOT / name).parent == ROOT / "docs" else None)
        if place is None:
            return text
        here = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({here}{anchor or ''})"

    return LINK.sub(on_site, markdown)
