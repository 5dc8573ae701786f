"""Several results folders become one: everything is read and compared first, and nothing is written if two disagree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pliant.errors import RecordError
from pliant.records.atomic import write_atomically
from pliant.records.folder import (
    StrPath,
    prepare_folder,
    read_records,
    record_path,
    record_text,
    refuse,
    same_series,
)
from pliant.records.record import Record

__all__ = ["Merged", "merge"]


@dataclass(frozen=True)
class Merged:
    """What came of :func:`merge`.

    Attributes:
        num_added: Records that were not there before.
        num_replaced: Failed records that gave way to complete ones.
        num_known: Records that were there already, or in several of the sources, with the same values.
        versions: Versions and commits that the records of the merged folder name, ``"pliant 0.1.0, torch 2.13.0,
            commit 1f0c9a2b"``, sorted.
        unfinished: Folders with checkpoints, which are not merged: their seeds go on where they are.

    Example:
        >>> from pliant.records import Merged
        >>> Merged(num_added=3, num_replaced=1, num_known=0).num_added
        3
    """

    num_added: int
    num_replaced: int
    num_known: int
    versions: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = field(default=())


def merge(sources: Sequence[StrPath], destination: StrPath) -> Merged:
    """Bring the records of several results folders into one; the sources stay as they are.

    Of the same experiment and seed, a complete record stands before a failed one, and of two failed ones the first
    stays. Two complete records must hold the same values to the last bit.

    Args:
        sources: Results folders, in order.
        destination: A results folder; may hold records already, or be made.

    Returns:
        How many records were added, replaced and known before, and from which versions all of them are.

    Raises:
        RecordError: A source does not exist or holds no record, a record is damaged, or two complete records of one
            experiment and seed differ. Nothing is written then.

    >>> import tempfile
    >>> from pliant.records import Record, experiment_id, write_record
    >>> config = {"stream": {"name": "digits"}}
    >>> name = experiment_id(config, "digits", "none")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for seed, place in ((0, "a"), (1, "b"), (0, "b")):
    ...         record = Record(experiment=config, experiment_id=name, seed=seed, series={"loss": [0.5]})
    ...         _ = write_record(record, f"{folder}/{place}")
    ...     merged = merge([f"{folder}/a", f"{folder}/b"], f"{folder}/all")
    >>> merged.num_added, merged.num_known
    (2, 1)
    """
    if not sources:
        raise RecordError("merge: name at least one results folder")
    goal = Path(destination)
    there = {_key(record): (str(goal), record) for record in (read_records(goal) if goal.is_dir() else [])}
    wanted = dict(there)
    num_known = 0
    for source in map(Path, sources):
        found = read_records(source)
        if not found:
            raise refuse(source, "holds no records", "Give the results folders of runs")
        for record in found:
            place, other = wanted.get(_key(record), ("", None))
            if other is None or (other.status == "failed" and record.status == "complete"):
                wanted[_key(record)] = (str(source), record)
                continue
            if other.status == record.status == "complete" and not same_series(other, record):
                what = (
                    f"differs from the record of the same experiment and seed in {place}: {_difference(other, record)}"
                )
                path = record_path(source, record.experiment_id, record.seed)
                raise refuse(
                    path, what, "Nothing was merged; find out which of the two is right, and move the other away"
                )
            num_known += 1
    new = {key: record for key, (_, record) in wanted.items() if key not in there or there[key][1] is not record}
    for record in new.values():
        prepare_folder(goal, record.experiment, record.experiment_id)
        write_atomically(record_path(goal, record.experiment_id, record.seed), record_text(record))
    num_replaced = len(new.keys() & there.keys())
    checkpoints = [path for source in sources for path in Path(source).rglob(".checkpoint")]
    return Merged(
        num_added=len(new) - num_replaced,
        num_replaced=num_replaced,
        num_known=num_known,
        versions=tuple(sorted({_version(record) for _, record in wanted.values()})),
        unfinished=tuple(sorted({str(path.parent) for path in checkpoints})),
    )


def _key(record: Record) -> tuple[str, int]:
    return record.experiment_id, record.seed


def _difference(one: Record, other: Record) -> str:
    """The first value that differs, in words."""
    for name in sorted(one.series.keys() | other.series.keys()):
        mine, theirs = one.series.get(name), other.series.get(name)
        if mine is None or theirs is None:
            return f"only one of them has {name}"
        if len(mine) != len(theirs):
            return f"{name} has {len(mine)} and {len(theirs)} tasks"
        for task, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if json.dumps(a) != json.dumps(b):
                return f"{name} in task {task} is {a!r} and {b!r}"
    return "the same values in another form"


def _version(record: Record) -> str:
    meta = record.meta
    commit = str(meta.get("git_commit") or "unknown")[:8]
    return f"pliant {meta.get('pliant', 'unknown')}, torch {meta.get('torch', 'unknown')}, commit {commit}"
