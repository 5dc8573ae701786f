"""What one run leaves behind: the record of one experiment with one seed, its writer and its reader.

A results folder holds one folder per experiment and in it one file per seed::

    RESULTS/
      permuted_digits-continual_backprop-1f0c9a2b7d3e/    the experiment's id
        experiment.json                                   the whole configuration, once
        seed-0000.json  seed-0001.json  ...               what each seed measured, complete or failed
        .checkpoint/                                      a runner's business; never read here

The id ends in a hash of the configuration, so two experiments that differ in anything never share a folder.
Files appear whole or not at all: they are written beside their place, flushed to the disk and then moved.
A failed seed is a record like any other, with its error; nothing in this package drops one.

This package needs the standard library and numpy only, so that reports can be made where PyTorch is not; pandas or
polars only where somebody asks for a data frame.
"""

from pliant.records.atomic import StorageError, sync_folder, write_atomically
from pliant.records.folder import (
    SCHEMA_VERSION,
    prepare_folder,
    read_record,
    read_records,
    record_path,
    record_text,
    write_record,
)
from pliant.records.frame import to_columns, to_frame
from pliant.records.merge import Merged, merge
from pliant.records.record import Record, canonical_json, experiment_id

__all__ = [
    "SCHEMA_VERSION",
    "Merged",
    "Record",
    "StorageError",
    "canonical_json",
    "experiment_id",
    "merge",
    "prepare_folder",
    "read_record",
    "read_records",
    "record_path",
    "record_text",
    "sync_folder",
    "to_columns",
    "to_frame",
    "write_atomically",
    "write_record",
]
