"""The monitor and the live twin meet a model that has changed."""

from __future__ import annotations

import pytest
import torch
from life_tools import Run, assert_same
from torch import nn

import pliant
from pliant import IllegalConfiguration
from pliant.monitor import DEFAULT


class Watched(Run):
    """With a monitor that reads often."""

    def __init__(self, **options) -> None:
        super().__init__((), **options)
        self.watch = pliant.monitor(
            self.model,
            self.optimizer,
            [*DEFAULT, "distance_from_initialisation"],
            units=self.handle.units,
            every=2,
            budget=None,
            reference=(torch.arange(10),),
        )


@pytest.fixture(scope="module")
def old():
    run = Watched().train(0, 30)
    return run.watch.state_dict(), run


def test_a_grown_vocabulary_is_no_mismatch_and_the_beginning_of_old_rows_stays(old):
    state, _ = old
    run = Watched(vocabulary=14, seed=2)
    fresh = run.model.words.weight.detach().clone()
    assert run.watch.load_state_dict(state).is_complete
    origin = run.watch.state_dict()["weights"]["origin"]["words.weight"]
    assert torch.equal(origin[:10], state["weights"]["origin"]["words.weight"])
    assert torch.equal(origin[10:], fresh[10:])
    run.train(30, 40)
    assert [reading.step for reading in run.watch.history] == list(range(2, 41, 2))


def test_a_wider_group_begins_anew_and_the_others_go_on(old):
    state, _ = old
    run = Watched(width=20)
    before = run.watch.state_dict()
    with pytest.raises(IllegalConfiguration, match=r"unit groups.*on_mismatch=\"reinit_group\""):
        run.watch.load_state_dict(state)
    assert_same(run.watch.state_dict()["history"], before["history"])
    report = run.watch.load_state_dict(state, on_mismatch="reinit_group")
    assert report.names("re-initialised") == ("body.0",)
    assert report.names("kept") == ("words", "body.2")
    now = run.watch.state_dict()
    kept = {(metric, place) for metric, place, _ in now["alarms"]["series"]}
    assert ("dead_fraction", "body.2") in kept
    assert ("dead_fraction", "body.0") not in kept
    assert now["twin"]["rows"]["body.0"].shape[1] == 20, "the twin is that of the model as it is"
    assert "body.0" in run.watch.unheard
    run.train(30, 40)
    assert len(run.watch.history) == 20
    assert not run.watch.alarms


def test_a_renamed_module_takes_its_past_along(old):
    state, cut = old
    run = Watched(body="core", seed=1)
    run.model.load_state_dict({key.replace("body", "core"): value for key, value in cut.model.state_dict().items()})
    report = run.watch.load_state_dict(state, renamed={"body": "core"})
    assert report.names("renamed") == ("core.0", "core.2")
    assert run.watch.history.series("dead_fraction", "core.0") == cut.watch.history.series("dead_fraction", "body.0")
    growth = run.watch.current["weight_growth"]
    assert set(growth) == {name for name, p in run.model.named_parameters() if p.ndim >= 2}
    theirs = {(metric, place.replace("body", "core")) for metric, place, _ in state["alarms"]["series"]}
    assert {(metric, place) for metric, place, _ in run.watch.state_dict()["alarms"]["series"]} == theirs
    initial = run.watch.state_dict()["weights"]["initial"]["core.0.weight"]
    assert initial == state["weights"]["initial"]["body.0.weight"]


def test_another_models_monitor_is_refused(old):
    state, _ = old
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    optimizer = torch.optim.Adam(model.parameters())
    watch = pliant.monitor(model, optimizer, example_inputs=torch.ones(4, 5))
    with pytest.raises(IllegalConfiguration, match="another model's"):
        watch.load_state_dict(state, on_mismatch="reinit_group")


def test_a_race_of_the_live_twin_is_abandoned_where_its_networks_do_not_fit():
    def made(vocabulary: int):
        run = Run((), vocabulary=vocabulary)
        live = pliant.live_twin(run.model, run.optimizer, loss=nn.functional.cross_entropy, every=4, window=6)
        return run, live

    run, live = made(10)
    ids = torch.arange(10)
    for step in range(12):
        run.train(step, step + 1)
        live.step((ids, ids))
    state = live.state_dict()
    assert state["race"] is not None
    assert state["races"]
    _, other = made(13)
    with pytest.raises(IllegalConfiguration, match=r"'words.weight' is 10 x 6 in the race, and 13 x 6 in the model"):
        other.load_state_dict(state)
    assert (other.num_steps, other.races) == (0, ())
    other.load_state_dict(state, on_mismatch="reinit_group")
    assert other.races == live.races
    assert other.num_abandoned == live.num_abandoned + 1
    other.step((ids, ids))
