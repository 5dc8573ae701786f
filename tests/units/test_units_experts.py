"""Experts whose weights are stacked in one tensor: when each has units of its own, and what is read of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant.stats import capture
from pliant.units import UnitGraph
from pliant.units.group import UnitGroup


class Routed(nn.Module):
    """Each row goes to one of three experts, whose matrices are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.other = nn.Linear(6, 3), nn.Linear(6, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 6, 8) / 3), nn.Parameter(torch.randn(3, 8, 4) / 3)
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(-1).max(-1)
        h = self.mixed(torch.relu(torch.bmm(x[:, None], self.up[chosen])[:, 0]))
        y = torch.einsum("bh,bho->bo", h, self.down[self.way(chosen, x)])
        return self.head(share[:, None] * y) + self.more(h)

    def mixed(self, h: Tensor) -> Tensor:
        return h

    def way(self, chosen: Tensor, x: Tensor) -> Tensor:
        return chosen

    def more(self, h: Tensor) -> Tensor | float:
        return 0.0


class Centred(Routed):
    def mixed(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


class Shifted(Routed):
    def mixed(self, h: Tensor) -> Tensor:
        return h + torch.cat([h[1:], h[:1]])


class SharedScale(Routed):
    def mixed(self, h: Tensor) -> Tensor:
        return h * self.scale


class TwoRouters(Routed):
    def way(self, chosen: Tensor, x: Tensor) -> Tensor:
        return self.other(x).argmax(-1)


class Gram(Routed):
    def more(self, h: Tensor) -> Tensor:
        return (h @ h.T).sum()


class FirstOnly(Routed):
    """Whatever the router says, the first expert is taken."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x @ self.up[0]) @ self.down[0])


def made(kind: type[nn.Module]) -> tuple[nn.Module, Tensor, UnitGraph]:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(24, 6)
    return model, x, pliant.find_units(model, x)


def test_each_expert_has_units_that_are_read_on_its_rows():
    model, x, units = made(Routed)
    assert [group.name for group in units if group.name.startswith("up")] == ["up.0", "up.1", "up.2"]
    assert [piece.label for piece in units["up.1"].slices] == ["up[1][-1]", "down[1][-2]"]
    assert all(group.reset_preserves_function for group in units)
    assert UnitGroup.from_dict(units["up.1"].to_dict()) == units["up.1"]
    assert units.verify(model, x).ok
    found = capture(model, units, x[:13])
    chosen = model.router(x[:13]).argmax(-1)
    for expert in range(3):
        want = torch.relu(x[:13][chosen == expert] @ model.up[expert])
        assert torch.allclose(found[f"up.{expert}"], want, atol=1e-6)


@pytest.mark.parametrize("kind", [Centred, Shifted, SharedScale, TwoRouters, Gram])
def test_experts_that_are_mixed_are_permuted_together(kind):
    model, x, units = made(kind)
    assert [group.name for group in units if group.name.startswith("up")] == ["up"]
    assert units.verify(model, x).ok
    single = made(Routed)[2]["up.0"]  # one expert alone is no symmetry of this model
    assert not UnitGraph((single,)).verify(model, x).ok


def test_an_expert_that_no_row_is_sent_to_is_left_alone():
    model, x, units = made(Routed)
    with torch.no_grad():
        model.router.bias.copy_(torch.tensor([0.0, 0.0, -100.0]))
    optimizer = torch.optim.Adam(model.parameters())
    method = pliant.ContinualBackprop(replacement_rate=0.2, maturity_threshold=2)
    init = dict.fromkeys(["up", "down"], "kaiming_uniform")
    handle = pliant.attach(model, optimizer, method, units=units, init=init)
    before = model.up[2].detach().clone()
    for _ in range(12):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert {"up.0", "up.1"} <= {event.group for event in handle.events}
    assert handle.unheard == ("up.2",)
    assert torch.equal(model.up[2], before)


def test_experts_that_are_never_reached_are_not_called_proved():
    _, x, units = made(Routed)
    experts = tuple(units[f"up.{expert}"] for expert in range(3))
    with pytest.raises(pliant.IllegalConfiguration, match=r"member of 'up.1' for these inputs .* no token is"):
        UnitGraph(experts).verify(FirstOnly(), x).raise_if_failed()
