"""Known failures: accepted for a candidate and a version range, and an error as soon as they no longer fail."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records.record import RuleResult
from harness.rules import RULE_IDS
from harness.verdict import UsageError, Verdict

_FIELDS = ("rule", "candidate", "package", "versions", "issue", "date", "reason")
_UNTIL_FIXED = "until_fixed"


@dataclass(frozen=True)
class KnownFailure:
    """One entry of known_failures.toml; see the comments at the top of suites/known_failures.toml."""

    rule: str
    candidate: str
    package: str
    versions: str
    issue: str
    date: str
    reason: str
    until_fixed: bool = False

    def applies(self) -> bool:
        """Return whether the installed version of the package lies in the range, or behind it until fixed.

        Without a package, always.
        """
        if not self.package:
            return True
        from packaging.specifiers import SpecifierSet

        version = self._installed()
        if not version:
            return False
        return SpecifierSet(self.versions).contains(version, prereleases=True) or self._still_there(version)

    @property
    def where(self) -> str:
        """The issue, and the installed version where the failure is still there behind the range, for a reason."""
        version = self._installed()
        later = bool(version) and self._still_there(version)
        return f"{self.issue}; still there in {self.package} {version}" if later else self.issue

    def _installed(self) -> str:
        try:
            return importlib.metadata.version(self.package) if self.package else ""
        except importlib.metadata.PackageNotFoundError:
            return ""

    def _still_there(self, version: str) -> bool:
        """Return whether the version is later than every one that the range names, in an entry that holds until fixed."""
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version

        named = [Version(each.version.removesuffix(".*")) for each in SpecifierSet(self.versions)]
        return self.until_fixed and bool(named) and Version(version) > max(named)


@dataclass(frozen=True)
class _Settled(KnownFailure):
    """An entry of which another machine has found out whether it applies, and where."""

    applied: bool = False
    found_where: str = ""

    def applies(self) -> bool:
        return self.applied

    @property
    def where(self) -> str:
        return self.found_where


def settle(entry: KnownFailure) -> dict[str, Any]:
    """Return an entry as JSON, with what the packages that are installed here make of it, for `settled`."""
    return {**_fields_of(entry), "applies": entry.applies(), "where": entry.where}


def settled(entry: dict[str, Any]) -> KnownFailure:
    """Return the entry that `settle` wrote down elsewhere; the packages that are installed here have no say."""
    kept = {name: value for name, value in entry.items() if name not in ("applies", "where")}
    return _Settled(**kept, applied=entry["applies"], found_where=entry["where"])


def _fields_of(entry: KnownFailure) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in (*_FIELDS, _UNTIL_FIXED)}


def default_path() -> Path:
    """Return the list that ships with the suites."""
    return Path(__file__).parents[2] / "suites" / "known_failures.toml"


def load_known_failures(path: Path) -> list[KnownFailure]:
    """Read a list of known failures.

    Raises:
        UsageError: the file cannot be read, an entry lacks a field, has one of another kind, names an unknown rule or has a
            bad version range.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a list of known failures ({error})") from error
    entries = data.get("failure", [])
    listed = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if set(data) - {"failure"} or not listed:
        raise UsageError(f"{path}: must hold nothing but [[failure]] entries, got {', '.join(sorted(data))}")
    found = []
    for number, entry in enumerate(entries, start=1):
        missing = [name for name in _FIELDS if name not in entry]
        if missing or set(entry) - {*_FIELDS, _UNTIL_FIXED}:
            raise UsageError(
                f"{path}: entry {number} must have exactly the fields {', '.join(_FIELDS)}, and {_UNTIL_FIXED} if it "
                f"holds beyond its versions, got {sorted(entry)}"
            )
        until_fixed = entry.get(_UNTIL_FIXED, False)
        if not isinstance(until_fixed, bool):
            raise UsageError(
                f"{path}: entry {number} has {_UNTIL_FIXED} {until_fixed!r}, expected true or false"
            )
        known = KnownFailure(**{name: str(entry[name]) for name in _FIELDS}, until_fixed=until_fixed)
        if known.rule not in RULE_IDS:
            raise UsageError(
                f"{path}: entry {number} names rule {known.rule!r}; known: {', '.join(RULE_IDS)}"
            )
        try:
            SpecifierSet(known.versions)
        except InvalidSpecifier as error:
            raise UsageError(
                f"{path}: entry {number} has versions {known.versions!r}, expected a range such as '<=0.7.2'"
            ) from error
        found.append(known)
    return found


def is_known(rule: str, candidate: str, known: Sequence[KnownFailure]) -> bool:
    """Return whether a rule is expected to fail on a candidate."""
    return any((entry.rule, entry.candidate) == (rule, candidate) and entry.applies() for entry in known)


def apply_known_failures(
    results: Sequence[RuleResult], known: Sequence[KnownFailure], *, alarm: bool = True
) -> list[dict[str, Any]]:
    """Turn failures that are known into known ones, and known ones that pass into failures; in place.

    Only illegal elements can be known: a crash, a hang or a rejection of a valid problem is never accepted.

    Args:
        results: of the rules.
        known: the list.
        alarm: fail where a known failure no longer fails; not where only one chosen problem was judged, or where the
            time was over before all were: the failure may need another one.

    Returns:
        One dictionary per entry that met a result: its fields, and `matched`.
    """
    met = []
    for entry in known:
        for result in results:
            if (
                (result.rule, result.candidate) != (entry.rule, entry.candidate)
                or result.skipped
                or not entry.applies()
            ):
                continue
            failed = result.verdict is Verdict.FAIL and all(f.kind == "illegal" for f in result.failures)
            if failed:
                result.verdict = Verdict.PASS
                result.reason = f"known failure: {entry.reason} ({entry.where})"
                for failure in result.failures:
                    failure.known_issue, failure.kind = entry.issue, "known"
            elif alarm and result.verdict is Verdict.PASS and result.compared and not result.reason:
                result.verdict = Verdict.FAIL
                result.reason = f"known failure no longer fails: remove the entry for {entry.issue} from known_failures.toml"
            met.append({**_fields_of(entry), "matched": failed})
    return met
