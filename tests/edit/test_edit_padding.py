"""The padding row of an embedding is no weight: it starts at zero, gets no gradient, and no edit may fill it."""

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant.units.init import Init, initialisers


class Sentences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8, padding_idx=2)
        self.layer, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(self.words(ids).mean(1))))


@pytest.mark.parametrize(
    "method",
    [
        pliant.ContinualBackprop(replacement_rate=0.2, maturity_threshold=2),
        pliant.ShrinkAndPerturb(shrink=0.9, noise_scale=0.1, every=3),
    ],
)
def test_the_padding_row_stays_zero(method: object) -> None:
    torch.manual_seed(0)
    model = Sentences()
    before = model.words.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.ones(3, 5).long())
    for _ in range(30):
        optimizer.zero_grad()
        model(torch.randint(9, (8, 5))).square().mean().backward()
        optimizer.step()
    assert len(list(handle.events)) > 0
    assert not model.words.weight[2].any()
    assert (model.words.weight - before)[:2].abs().max() > 0.1


def test_single_weights_of_the_padding_row_are_not_drawn() -> None:
    model = Sentences()
    units = pliant.find_units(model, torch.ones(3, 5).long())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, pliant.ContinualBackprop(), units=units)
    with torch.no_grad():
        model.words.weight.fill_(7.0)
    handle._editor.reset_weights("words.weight", torch.ones(9, 8, dtype=torch.bool))
    assert (model.words.weight[2] == 7.0).all()
    kept = torch.arange(9) != 2
    assert (model.words.weight != 7.0)[kept].all()


def test_a_bilinear_layer_has_a_known_initialisation() -> None:
    inits = initialisers(nn.Sequential(nn.Bilinear(4, 9, 3)))
    assert inits["0.weight"] == inits["0.bias"] == Init("uniform", 0.5)
