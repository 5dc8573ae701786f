"""Whether and when a curve reaches a threshold, and what is said where it does not."""

import math

import pytest

from pliant.trainability import tau_trainability


def test_reached_at_the_first_time():
    found = tau_trainability([3.0, 1.0, 2.0, 0.5], 1.0, steps=[0, 5, 10, 15])
    assert found == (True, 5, 0.5, 0.5, 1.0, 15)


def test_censored_is_no_number():
    found = tau_trainability([3.0, 2.0], 1.0)
    assert (found.trainable, found.steps, found.lowest, found.final, found.budget) == (False, None, 2.0, 2.0, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_reaches_nothing(bad):
    found = tau_trainability([bad, 2.0, bad], 2.5)
    assert (found.steps, found.lowest) == (1, 2.0)
    assert not tau_trainability([bad, bad], 1.0).trainable
    assert math.isnan(tau_trainability([bad], 1.0).lowest)


@pytest.mark.parametrize(
    ("losses", "tau", "steps"),
    [([], 1.0, None), ([1.0], math.nan, None), ([1.0, 2.0], 1.0, [0]), ([1, 2], 1.0, [3, 3])],
)
def test_bad_input(losses, tau, steps):
    with pytest.raises(ValueError, match=r"empty|finite|increasing"):
        tau_trainability(losses, tau, steps=steps)
