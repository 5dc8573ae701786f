"""Members with different settings in one stack: each is what it is among members with its own settings."""

from __future__ import annotations

import pytest
import torch

from pliant.bench import checkpoint
from pliant.bench.engine import Members, Stopped, can_stack, can_stack_together
from pliant.bench.experiment import Experiment
from pliant.errors import IllegalConfiguration, NotYetSupported, RecordError

CBP = ("continual_backprop", {"replacement_rate": 0.05, "maturity_threshold": 3})


def tiny(optimizer=("sgd", {"lr": 0.1}), methods=(), num_tasks=2, hidden=(8, 6), **options):
    return Experiment(
        ("stream_zoo:Tiny", options), methods, optimizer, ("mlp", {"hidden": hidden}), num_tasks=num_tasks
    )


def together(experiments, seeds=(0, 1), **options):
    members = Members(experiments, seeds, None, stacked=True, **options)
    members.run()
    members.close()
    return members


def check_each(experiments, seeds=(0, 1), exact=True, **options):
    """Every member's series and weights are those of a stack with its settings alone."""
    mine = together(experiments, seeds, **options)
    assert mine.experiments == tuple(e for e in experiments for _ in seeds)
    for number, experiment in enumerate(experiments):
        alone = together(experiment, seeds, **options)
        for position in range(len(seeds)):
            member = number * len(seeds) + position
            assert mine.series_of(member).keys() == alone.series_of(position).keys()
            for name, values in alone.series_of(position).items():
                assert mine.series_of(member)[name] == pytest.approx(values, abs=0 if exact else 1e-5, nan_ok=True), (
                    name
                )
        for name, value in alone.model.state_dict().items():
            own = mine.model.state_dict()[name][number * len(seeds) : (number + 1) * len(seeds)]
            if exact:
                assert torch.equal(own, value), name
            else:
                torch.testing.assert_close(own, value, rtol=1e-4, atol=1e-5)
    return mine


def test_step_sizes_and_replacement_rates():
    grid = [
        tiny(("sgd", {"lr": rate}), [("continual_backprop", {"replacement_rate": replaced, "maturity_threshold": 3})])
        for rate in (0.1, 0.01)
        for replaced in (0.05, 0.2)
    ]
    assert can_stack_together(grid)
    members = check_each(grid, exact=False)  # plain SGD multiplies by a vector of step sizes: other roundings
    resets = torch.stack(members.series["num_resets"]).sum(0)
    assert (resets[2:4] > resets[0:2]).all()


OPTIMIZERS = [
    ("adam", {"lr": 1e-2}),
    ("adam", {"lr": 1e-3, "betas": (0.8, 0.9)}),
    ("adamw", {"lr": 1e-2, "weight_decay": 0.1}),
    ("rmsprop", {"lr": 1e-3}),
    ("sgd", {"lr": 0.05, "momentum": 0.9}),
    ("nadam", {"lr": 1e-3}),
    ("radam", {"lr": 1e-2}),
    ("adamax", {"lr": 1e-2}),
    ("adagrad", {"lr": 1e-2}),
    ("adadelta", {"lr": 1.0}),
    ("asgd", {"lr": 0.05}),
    ("rprop", {"lr": 1e-3}),
    ("upgd", {"lr": 0.01}),
]


@pytest.mark.parametrize("by_hand", [None, False])
def test_every_elementwise_optimizer(by_hand):
    check_each([tiny(optimizer, [CBP]) for optimizer in OPTIMIZERS], by_hand=by_hand)


MIXED = [
    [],
    [CBP],
    [("l2", {"strength": 0.01})],
    [("l2", {"strength": 0.1})],
    [("shrink_and_perturb", {"shrink": 0.9, "noise_scale": 0.1})],
    [("redo", {"tau": 0.5, "every": 5})],
    [("regrama", {"tau": 0.5, "every": 5})],
    [("gradient_noise", {"noise_scale": 0.1})],
    [("l2", {"strength": 0.1, "apply": "gradient"})],
    [("fresh_start", {})],
]


@pytest.mark.parametrize("by_hand", [None, False])
def test_methods_side_by_side(by_hand):
    mine = check_each([tiny(methods=methods) for methods in MIXED], by_hand=by_hand, exact=by_hand is False)
    assert len(mine.cohorts) == len(MIXED)


def test_what_needs_a_pass_of_its_own_is_refused_by_name():
    for method, name in (
        (("feature_norm", {}), "FeatureNorm adds a term"),
        (("l2", {"apply": "loss"}), "L2 adds a term"),
        (("experience_replay", {}), "ExperienceReplay changes the batches"),
    ):
        pair = [tiny(), tiny(methods=[method])]
        assert not can_stack_together(pair)
        with pytest.raises(NotYetSupported, match=name):
            Members(pair, (0, 1), None, stacked=True)
    assert not can_stack_together([tiny(), tiny(hidden=(4,))])
    with pytest.raises(IllegalConfiguration, match="differ in model"):
        Members([tiny(), tiny(hidden=(4,))], (0, 1), None, stacked=True)
    with pytest.raises(IllegalConfiguration, match="one at a time"):
        Members([tiny(), tiny(("sgd", {"lr": 0.5}))], (0,), None, stacked=False)
    with pytest.raises(IllegalConfiguration, match="no members"):
        Members([], (0,), None, stacked=True)


def test_optimizers_that_mix_weights_are_not_stacked():
    assert not can_stack(tiny(("adafactor", {})))
    assert can_stack(tiny(("adam", {})))


def test_a_diverged_member_leaves_the_others_of_all_settings_alone():
    grid = [tiny(("sgd", {"lr": rate, "momentum": 0.5}), [CBP], num_tasks=3) for rate in (0.1, 0.05)]
    wild = [tiny(("sgd", {"lr": rate, "momentum": 0.5}), [CBP], num_tasks=3) for rate in (0.1, 1e30)]
    calm, broken = together(grid), together(wild)
    assert set(broken.failures) == {2, 3}
    assert "step size" in broken.failures[2].message
    for name, value in calm.model.state_dict().items():
        assert torch.equal(value[:2], broken.model.state_dict()[name][:2])
    for name, values in calm.series_of(0).items():
        assert broken.series_of(0)[name] == pytest.approx(values, abs=0, nan_ok=True)
    assert not broken.model.head.weight.detach()[2:].any()


def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path):
    grid = [tiny(("adam", {"lr": rate}), [CBP], num_tasks=4) for rate in (0.01, 0.001)]
    whole = together(grid)
    stops = iter([False, False, True])
    first = Members(grid, (0, 1), tmp_path, stacked=True, should_stop=lambda: next(stops))
    with pytest.raises(Stopped):
        first.run()
    first.close()
    rest = Members(grid, (0, 1), tmp_path, stacked=True)
    assert rest.next_task == 2
    rest.run()
    rest.close()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name])
    for member in range(4):
        for name, values in whole.series_of(member).items():
            assert rest.series_of(member)[name] == pytest.approx(values, abs=0, nan_ok=True)
    with pytest.raises(RecordError, match="another experiment"):
        Members(list(reversed(grid)), (0, 1), tmp_path, stacked=True)
    checkpoint.remove_checkpoint(tmp_path, (0, 1, 0, 1))
