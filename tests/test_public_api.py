"""The names that people may rely on. A change here is a change for everyone: it belongs into the changelog."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pliant
from pliant import interventions, metrics, report
from pliant.bench.experiment import method_table
from pliant.bench.streams import STREAMS
from pliant.commands import COMMANDS

PUBLIC = {
    "find_units declare_units verify UnitGraph UnitGroup",
    "monitor Monitor",
    "attach Handle ContinualBackprop FreshStart L2 NormalizeAndProject ReDo ShrinkAndPerturb",
    "AdaptiveNormalization InsertDropout InsertNormalization",
    "PliantError UnsupportedError UnsupportedOp NotYetSupported IllegalConfiguration NoEffect NoEffectWarning",
    "RecordError",
}

OPTIONS = {
    "demo": "debug out quick seeds workers",
    "run": "data-dir debug lr method optimizer out preset seeds set stream tasks workers",
    "list": "debug kind",
    "report": "csv debug figure folder markdown metric out stream",
    "units": "debug input model verify",
}

METHODS = {
    "adaptive_normalization": "rate every dormant_above dormant_below growth_above growth_below tau where",
    "insert_dropout": "p where",
    "insert_normalization": "kind gate where",
    "continual_backprop": (
        "replacement_rate maturity_threshold decay_rate utility exact decide_every sample_every where"
    ),
    "fresh_start": "every",
    "l2": "strength where",
    "normalize_and_project": "every affine decay unnormalised where",
    "redo": "tau every where",
    "shrink_and_perturb": "shrink noise_scale every where",
}

STREAM_OPTIONS = {
    "permuted_digits": "num_examples num_test num_epochs batch_size",
    "permuted_mnist": "data_dir num_examples num_epochs batch_size",
    "random_label_digits": "num_examples num_epochs batch_size",
    "stationary_digits": "num_examples num_test num_epochs batch_size",
}

METRICS = (
    "dead_fraction dead_mask dormancy_score dormant_fraction dormant_mask effective_rank stable_rank weight_magnitude"
)

REPORT = "csv_text figure_svg html_text markdown_text summarise terminal_tables write_csv write_markdown write_report"


def test_the_public_names():
    assert sorted(pliant.__all__) == sorted(" ".join(PUBLIC).split())
    for name in pliant.__all__:
        thing = getattr(pliant, name)
        assert not inspect.ismodule(thing), name
        assert name in dir(pliant)


def test_the_version_is_said_once():
    declared = re.search(
        r'^version = "(.*)"$', (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert declared is not None
    assert declared[1] == pliant.__version__


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert not hasattr(pliant, "atach")
    assert pliant.interventions is interventions


def test_the_methods_and_their_options():
    assert sorted(interventions.__all__) == [
        *("AdaptiveNormalization", "ContinualBackprop", "FreshStart", "InsertDropout", "InsertNormalization", "L2"),
        *("NormalizeAndProject", "ReDo", "ShrinkAndPerturb"),
    ]
    found = {name: " ".join(field.name for field in dataclasses.fields(cls)) for name, cls in method_table().items()}
    assert found == METHODS


def test_the_streams_and_their_options():
    found = {name: " ".join(field.name for field in dataclasses.fields(cls)) for name, cls in STREAMS.items()}
    assert found == STREAM_OPTIONS


def test_the_command_line():
    found = {
        name: " ".join(sorted(field.name.replace("_", "-") for field in dataclasses.fields(cls)))
        for name, cls in COMMANDS.items()
    }
    assert found == OPTIONS


def test_metrics_and_reports():
    assert sorted(metrics.__all__) == METRICS.split()
    assert sorted(report.__all__) == REPORT.split()
