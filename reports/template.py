"""The Jinja environment that every section draws with: everything escaped, every missing name an error."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import history_words, text, threads

FOLDER = Path(__file__).parent


@cache
def environment() -> Environment:
    """Return the shared environment. `finalize` makes clipping and visible escapes the default, not a habit."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=text.shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        clip=text.clip,
        clip_plain=text.clip_plain,
        count=text.count,
        duration=text.duration,
        linked=text.linked,
        moment=history_words.moment,
        name=text.name,
        plain=text.plain,
        ratio=text.ratio,
        thread=threads.thread,
    )
    return made


def fill(template: str, **values: Any) -> Markup:
    """Return the template of this folder filled with the values."""
    # The environment has escaped every value; the rest is the template's own markup.
    return Markup(environment().get_template(template).render(**values))  # noqa: S704


def asset(name: str) -> str:
    """Return a stylesheet or script of this folder, with line ends as the browser will hash them."""
    return (FOLDER / name).read_text(encoding="utf-8")
