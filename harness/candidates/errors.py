"""What a candidate raises, in words. Its exceptions are its own code: even their text may raise."""

from __future__ import annotations

import traceback

Exceptions = tuple[type[BaseException], ...]
ORDINARY: Exceptions = (Exception, SystemExit)  # what any code may raise that is not asked to end
LONGEST = 2000  # characters of a message that are kept


def text_of(error: BaseException) -> str:
    """Return an exception's text, "" where it has none or cannot be shown."""
    try:
        text = str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - whatever the candidate's own code does
        return ""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def in_words(error: BaseException) -> str:
    """Return an exception as `Type: text`, whatever its own methods do."""
    name = type.__dict__["__name__"].__get__(type(error))  # a metaclass may have another idea of it
    try:
        str(error)
    except BaseException:  # noqa: BLE001 - as above
        return f"{name} (its text cannot be shown)"
    text = text_of(error)
    return f"{name}: {text}" if text else str(name)


def traits_mistake(error: BaseException) -> str:
    """Return what is wrong where an exception is the refusal of what a candidate declares, else "".

    `Traits` and `traits_of` start their messages like this, and so does Python where a trait has another name.
    """
    if not isinstance(error, (TypeError, ValueError)):
        return ""
    text = text_of(error)
    return text if text.startswith(("Traits: ", "Traits.__init__()", "candidate.traits ")) else ""


class CandidateStartError(Exception):
    """A candidate could not be loaded or probed: the reason, for a verdict of UNKNOWN or FAIL."""


def in_words_with_place(error: BaseException) -> str:
    """Return an exception as `Type: text (file:line in function)`, with the innermost place where it was raised."""
    try:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({last.filename.rsplit('/', 1)[-1]}:{last.lineno} in {last.name})"
    except BaseException:  # noqa: BLE001 - whatever the candidate's own code does
        where = ""
    return in_words(error) + where
