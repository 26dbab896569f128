"""`harness report --merge`: one record of all shards of a run."""

from __future__ import annotations

from pathlib import Path

from harness.verdict import UsageError, exit_code


def merge_into(paths: tuple[Path, ...], history: Path | None, out: Path | None) -> int:
    """Write the record of the run whose shards these are into a folder, print its verdict, return its exit code.

    Raises:
        UsageError: nothing to merge, no folder, a record that cannot be read, or that is no shard of the same run.
    """
    from harness.ci.folder import held_folder
    from harness.cli.output import finish
    from harness.records.find import load_records
    from harness.records.from_json import RecordError
    from harness.running.shared.merging import merge_shards

    if not paths or history is not None or out is None:
        raise UsageError(
            "--merge takes the RECORD of each shard, and --out DIR for the record of the whole run"
        )
    try:
        merged = merge_shards([(str(file), record) for path in paths for file, record in load_records(path)])
    except RecordError as error:
        raise UsageError(f"--merge: {error}") from error
    with held_folder(out, ["harness", "check"], "remove it"):
        finish(merged, out)
    return exit_code(merged.verdict)
