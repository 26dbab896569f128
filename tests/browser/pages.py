"""What a browser is asked about a page: words that are broken apart, complaints of axe, the first screen."""

from __future__ import annotations

from typing import Any

AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FOLD_OPEN = "document.querySelectorAll('details').forEach(d => d.open = true)"
SIZES = [(1280, "light"), (400, "dark"), (1280, "dark"), (400, "light")]

# Letters of one word on two lines. Code may break where it must: a problem string is no word.
_BROKEN = """() => {
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const cell = text.parentElement.closest("td, th");
    if (!cell || !cell.checkVisibility() || cell.closest(".hidden") || text.parentElement.closest("code")) continue;
    if (getComputedStyle(cell.closest("thead") || cell).position === "absolute") continue;
    for (const word of text.data.matchAll(/[A-Za-z]{2,}/g)) {
      const range = document.createRange();
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1) found.push(`${word[0]} in ${cell.innerText.slice(0, 60)}`);
    }
  }
  return found;
}"""


def broken_words(page: Any) -> list[str]:
    """Return the words in cells of tables whose letters stand on more than one line."""
    found: list[str] = page.evaluate(_BROKEN)
    return found


def violations(page: Any) -> list[tuple[str, Any, str]]:
    """Return what axe finds: rule, element, and how to fix it."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": AXE_TAGS, "resultTypes": ["violations"]}
    return [
        (violation["id"], node["target"], node.get("failureSummary", "")[:300])
        for violation in Axe().run(page, options=options).response["violations"]
        for node in violation["nodes"][:3]
    ]


def height(page: Any) -> int:
    """Return how tall the page is, in pixels."""
    return int(page.evaluate("document.documentElement.scrollHeight"))
