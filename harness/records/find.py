"""Record files in folders: which there are, and the one that a path names."""

from __future__ import annotations

from pathlib import Path

from harness.records.from_json import RecordError
from harness.records.record import NotARecordError, RunRecord, load_record

RECORD_NAME = "record.json"


def record_files(folder: Path) -> list[Path]:
    """Return every JSON file below a folder, in the order of their names; hidden folders are left out.

    Raises:
        RecordError: the folder cannot be listed.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: is not a folder")
    found = (path for path in folder.rglob("*.json") if path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def load_records(path: Path) -> list[tuple[Path, RunRecord]]:
    """Return the record that a path names, or all records below a folder without a record.json, oldest first.

    JSON files that are no records are passed over.

    Raises:
        RecordError: a record that cannot be read, or none at all.
    """
    if not path.is_dir() or (path / RECORD_NAME).exists():
        file = path / RECORD_NAME if path.is_dir() else path
        return [(file, load_record(file))]
    found = []
    for file in record_files(path):
        try:
            found.append((file, load_record(file)))
        except NotARecordError:
            continue
    if not found:
        raise RecordError(f"{path}: cannot be read as a record: no {RECORD_NAME} in it, and none below it")
    return sorted(found, key=lambda pair: (pair[1].created, str(pair[0])))
