"""Stable-Baselines3 policies: hidden layers of all networks that train, whatever the spaces."""

from __future__ import annotations

import pytest
import torch
import zoo_sb3
from zoo_sb3 import SB3

import pliant


@pytest.mark.parametrize("name", SB3)
def test_the_expected_groups_are_found_and_proved(name):
    case = SB3[name]
    models = case.models(case.make())
    inputs = case.inputs(models)
    units = pliant.find_units(models, inputs)
    found = {group.name: (group.size, {f"{p.name}[{p.dim}]" for p in group.slices}) for group in units}
    assert found == {name: (size, set(members.split())) for name, (size, members) in case.groups.items()}
    assert all(group.reset_preserves_function for group in units)
    assert all(group.tap is not None and group.tap.module and not group.tap.replay for group in units)
    result = units.verify(models, inputs)
    assert result.ok, result
    assert result.precision == "float64"


def test_only_the_action_and_value_dimensions_are_excluded_with_the_data():
    case = SB3["ppo_continuous"]
    units = pliant.find_units(case.make().policy, case.inputs(None))
    assert units.unknown_ops == {}
    assert {key for key, reason in units.excluded.items() if "drawn" in reason} == {
        ("action_net.weight", -2),
        ("action_net.bias", -1),
        ("log_std", -1),
    }
    assert "output" in units.excluded["value_net.weight", -2]


def test_a_whole_policy_is_only_what_its_forward_uses():
    """SAC's policy acts with the actor alone: critics and targets are said to be unused."""
    case = SB3["sac"]
    policy = case.make().policy
    units = pliant.find_units(policy, case.inputs(None))
    assert [group.name for group in units] == ["actor.latent_pi.0", "actor.latent_pi.2"]
    for net in ("critic.qf0", "critic_target.qf1"):
        assert "not used" in units.excluded[f"{net}.0.weight", -2]


def test_a_policy_that_returns_only_actions_cannot_be_checked_and_says_what_can():
    case = SB3["dqn"]
    policy = case.make().policy
    units = pliant.find_units(policy, case.inputs(None))
    assert "q_net.q_net.0" in units
    with pytest.raises(pliant.IllegalConfiguration, match=r"only actions or indices.*policy\.q_net"):
        units.verify(policy, case.inputs(None))


def test_finding_units_leaves_a_policy_as_it_was():
    """Its features extractor is registered under three names."""
    case = SB3["ppo_image"]
    policy = case.make().policy
    before = {name: (id(p), p.detach().clone()) for name, p in policy.named_parameters(remove_duplicate=False)}
    units = pliant.find_units(policy, case.inputs(None))
    units.verify(policy, case.inputs(None))
    after = dict(policy.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    for name, (identity, value) in before.items():
        assert id(after[name]) == identity
        assert torch.equal(after[name], value)


def test_a_features_extractor_that_actor_and_critic_share_is_one_set_of_groups():
    case = zoo_sb3.Sb3Case(
        "SAC",
        "CnnPolicy",
        zoo_sb3.IMAGE,
        zoo_sb3.CONTINUOUS,
        zoo_sb3.actor_and_critic,
        {},
        {"buffer_size": 10, "policy_kwargs": {"share_features_extractor": True}},
    )
    algorithm = case.make()
    models = case.models(algorithm)
    units = pliant.find_units(models, case.inputs(models))
    group = units["actor.features_extractor.linear.0"]
    assert set(group.tensors) == {
        *("actor.features_extractor.linear.0.weight", "actor.features_extractor.linear.0.bias"),
        *("actor.latent_pi.0.weight", "critic.qf0.0.weight", "critic.qf1.0.weight"),
    }
    assert not any(name.startswith("critic.features_extractor") for found in units for name in found.tensors)
    assert units.verify(models, case.inputs(models)).ok
