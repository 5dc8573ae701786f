"""The study of spectral collapse: its runs are those of single networks, its numbers those of known series."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks.spectral import analysis, page, study
from benchmarks.spectral.measures import FACTORS, before_a_task, published_recipe
from benchmarks.spectral.problems import BATCH, LR, METHODS, NUM_TASKS, STEPS, STREAMS
from pliant.interventions import L2
from pliant.spectrum import ggn_operator, ggn_spectrum


def made_up(accuracy, share):
    """A run with given accuracies, and shares above eps* before each task."""
    place = FACTORS.index(1.0)
    tasks = [
        {"accuracy": a, "shares": [s if k == place else None for k in range(len(FACTORS))]}
        for a, s in zip(accuracy, share, strict=True)
    ]
    return {"tasks": tasks}


FALLING = [0.9] * 8 + [0.4] * 4


def test_failure_collapse_and_lead():
    early = made_up(FALLING, [0.1, 0.8, 0.8, 0.8, 0.8, 0.3, *[0.2] * 6])
    assert analysis.first(analysis.failing(early)) == 8
    assert analysis.lead(early, "share") == 3
    late = made_up(FALLING, [0.1, *[0.8] * 9, 0.3, 0.3])
    assert analysis.lead(late, "share") == -2
    assert math.isnan(analysis.lead(made_up([0.9] * 12, [0.1] * 12), "share"))
    assert math.isnan(analysis.lead(made_up(FALLING, [0.8] * 12), "share"))
    scores, events = analysis.at_risk(early, "share", 0)
    assert len(scores) == 8 + 1 - 3
    assert events == [False] * 5 + [True]
    assert analysis.at_risk(early, "share", 3)[1] == [False, False, True, True, True, True]
    assert analysis.at_risk(made_up([0.9] * 12, [0.1] * 12), "share", 3)[1] == [False] * (12 - 3 - 3)
    # Of tasks 2 to 12 four fail; of the seven others the values are lower in one, and tied with none.
    assert analysis.within_runs([analysis.fails_of(early, "share")]) == pytest.approx((4 * 5 + 4 * 2 / 2) / (4 * 7))
    assert math.isnan(analysis.within_runs([analysis.fails_of(made_up([0.9] * 12, [0.1] * 12), "share")]))


def test_what_is_missing_is_left_out():
    run = made_up(FALLING, [None, *[0.8] * 10, None])
    assert np.isnan(analysis.series(run, "share")[[0, 11]]).all()
    assert analysis.clean(analysis.series(run, "share"), analysis.accuracy(run))[2] == list(range(1, 11))
    assert analysis.series(run, "previous")[1] == 0.9
    assert math.isnan(analysis.over([math.nan]).mean)


def test_a_member_of_the_study_is_a_network_that_learns_alone():
    name, seeds = "permuted_digits", (100, 101)
    members = study.Members(name, seeds, L2(1e-3, apply="gradient"))
    seen = []
    rows = members.run(1, lambda index, member, model, task: seen.append((index, member, copy.deepcopy(model))))
    assert [(index, member) for index, member, _ in seen] == [(0, 0), (0, 1)]
    alone = study.fresh(101)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), seen[1][2].parameters(), strict=True))
    optimizer = torch.optim.Adam(alone.parameters(), lr=LR, weight_decay=1e-3)
    task = STREAMS[name].task(0, 101)
    steps = 0
    for epoch in range(task.num_epochs):
        for index in task.order(epoch).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(alone(task.inputs[index]), task.targets[index]).backward()
            optimizer.step()
            steps += 1
    assert steps == STEPS
    single = members.single(1)
    for mine, theirs in zip(alone.parameters(), single.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-3)
    assert 0.5 < rows[1][0]["accuracy"] <= 1
    assert rows[0][0]["online"] < rows[0][0]["accuracy"]


def test_a_measure_that_cannot_be_computed_is_null():
    task = STREAMS["random_label_digits"].task(0, 100)
    whole = before_a_task(study.fresh(100), task.inputs, task.targets, whole=False)
    assert whole["shares"] == sorted(whole["shares"], reverse=True)
    assert {"feature_rank", "alive", "gain", "kernel_condition", "ggn_rank"} <= set(whole)
    broken = study.fresh(100)
    with torch.no_grad():
        broken[0].weight[0, 0] = math.inf
    found = before_a_task(broken, task.inputs, task.targets, whole=False)
    assert found["feature_rank"] is None
    assert "shares" not in found
    json.dumps(found, allow_nan=False)


def test_the_published_recipe_has_the_defects_that_are_shown():
    """On a matrix whose spectrum is known: shares above what there is, up to above one."""
    task = STREAMS["random_label_digits"].task(0, 100)
    batch = task.inputs[:16], task.targets[:16]
    model = study.fresh(100, (12, 12))
    exact = ggn_spectrum(model, batch, dtype=torch.float64)
    share = float((exact.eigenvalues() > 1e-3).sum()) / exact.num_parameters
    assert published_recipe(ggn_operator(model, batch), [1e-3])[0] > 1.5 * share


STREAMS_WITH_RECORDS = analysis.load()


def test_the_page_is_what_the_records_say():
    assert set(STREAMS_WITH_RECORDS) == set(STREAMS)
    found = {
        stream: {key: analysis.found_of(records, key) for key in analysis.MEASURES}
        for stream, records in STREAMS_WITH_RECORDS.items()
    }
    expected = json.loads(analysis.EXPECTATIONS.read_text(encoding="utf-8"))
    text = page.page(STREAMS_WITH_RECORDS, found, expected, analysis.claims(STREAMS_WITH_RECORDS, found))
    assert text == (analysis.ROOT / "docs" / "results" / "spectral_collapse.md").read_text(encoding="utf-8")
    for records in STREAMS_WITH_RECORDS.values():
        assert set(records.runs) == set(METHODS)
        assert all(len(run["tasks"]) == NUM_TASKS for name in METHODS for run in records.of(name))
        assert all(record["meta"]["git_dirty"] is False for record in records.runs.values())
