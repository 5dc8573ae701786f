"""Recurrent layers, parametrised and computed weights: what is read, what is refused and why, what a reset keeps."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from test_units_zoo import members
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

import pliant
from pliant.stats.capture import capture
from pliant.units.init import initialisers


class Tagger(nn.Module):
    """A recurrent layer that may start from a given state, return its last one, and run on packed sequences."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 2)

    def forward(self, x, state=None, lengths=None, give=False):
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        steps, state = self.layer(x, state)
        if lengths is not None:
            return self.head(state[-1])
        return (self.head(steps), state) if give else self.head(steps)


def state_of(layer: nn.Module, rows: int) -> object:
    hidden = torch.zeros(rows, 2, 4)
    return (hidden, torch.zeros(rows, 2, layer.hidden_size)) if isinstance(layer, nn.LSTM) else hidden


@pytest.mark.parametrize("give", [False, True])
@pytest.mark.parametrize(
    ("layer", "rows", "names"),
    [
        (nn.GRU(3, 4, batch_first=True), 1, ["layer"]),
        (nn.LSTM(3, 4, 2, batch_first=True), 2, ["layer.l0", "layer.l1"]),
        (nn.RNN(3, 4, 3, batch_first=True), 3, ["layer.l0", "layer.l1", "layer.l2"]),
    ],
)
def test_a_state_that_is_carried_on_moves_with_its_units(layer, rows, names, give):
    """As truncated backpropagation and recurrent policies use it: with the units, the state is permuted, row by row."""
    model, x = Tagger(layer), torch.randn(2, 5, 3)
    inputs = {"x": x, "state": state_of(layer, rows), "give": give}
    units = pliant.find_units(model, inputs)
    assert [group.name for group in units] == names
    kinds = {"input", "output"} if give else {"input"}
    for row, group in enumerate(units):
        assert {piece.kind for piece in group.state} == kinds
        assert {piece.row for piece in group.state} == {row}
        assert group.reset_preserves_function
        assert type(group).from_dict(group.to_dict()) == group
    result = units.verify(model, inputs)
    assert result.ok, str(result)
    without = pliant.units.UnitGraph(tuple(dataclasses.replace(group, state=()) for group in units))
    assert not without.verify(model, inputs).ok


def test_a_state_that_is_cleared_between_episodes_is_still_a_state():
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell = nn.Linear(3, 5), nn.LSTMCell(5, 4)
            self.action, self.value = nn.Linear(4, 2), nn.Linear(4, 1)

        def forward(self, x, hidden, memory, done):
            going = (1 - done).unsqueeze(-1)
            hidden, memory = self.cell(torch.relu(self.embed(x)), (hidden * going, memory * going))
            return self.action(hidden), self.value(hidden), hidden, memory

    model, inputs = Policy(), (torch.randn(2, 3), torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2))
    units = pliant.find_units(model, inputs)
    assert [(group.name, group.size) for group in units] == [("embed", 5), ("cell", 4)]
    assert [(piece.kind, piece.slot) for piece in units["cell"].state] == [
        ("input", 1), ("input", 2), ("output", 2), ("output", 3),
    ]  # fmt: skip
    assert units.verify(model, inputs).ok


def test_a_state_that_is_only_returned_is_an_output():
    model, x = Tagger(nn.GRU(3, 4, batch_first=True)), torch.randn(2, 5, 3)
    with pytest.raises(pliant.NoEffect, match="initial state must be passed in"):
        pliant.find_units(model, {"x": x, "give": True})
    assert pliant.find_units(model, x)["layer"].state == ()


def test_a_state_that_also_serves_elsewhere_fixes_the_order_of_its_units():
    class Skip(Tagger):
        def forward(self, x, state):
            return super().forward(x, state) + state.sum()

    inputs = (torch.randn(2, 5, 3), torch.zeros(1, 2, 4))
    with pytest.raises(pliant.NoEffect, match="given from outside"):
        pliant.find_units(Skip(nn.GRU(3, 4, batch_first=True)), inputs)


def test_packed_sequences_are_refused_with_the_way_that_works():
    """Units of the padded forward serve the packed one; only real steps, no padding, are then counted."""
    model, x = Tagger(nn.GRU(3, 4, batch_first=True)), torch.randn(2, 5, 3)
    lengths = torch.tensor([5, 2])
    with pytest.raises(pliant.UnsupportedOp, match="'layer' runs on a packed sequence"):
        pliant.find_units(model, {"x": x, "lengths": lengths})
    units = pliant.find_units(model, x)
    seen = capture(model, units, {"x": x, "lengths": lengths})["layer"]
    with torch.no_grad():
        steps, _ = model.layer(x)
    truth = torch.cat([steps[0], steps[1, :2]])
    assert seen.shape == (7, 4)
    assert torch.allclose(seen.sum(0), truth.sum(0), atol=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, pliant.ReDo(tau=1.0, every=1), units=units)
    model(x, lengths=lengths).sum().backward()
    optimizer.step()
    assert handle.num_resets["layer"] > 0


def test_a_learned_start_belongs_to_the_units():
    class Learned(Tagger):
        def __init__(self, layers: int) -> None:
            super().__init__(nn.GRU(3, 4, layers, batch_first=True))
            self.start = nn.Parameter(torch.randn(layers, 1, 4))

        def forward(self, x):
            return super().forward(x, self.start.expand(-1, len(x), -1).contiguous())

    x = torch.randn(2, 5, 3)
    one = pliant.find_units(Learned(1), x)
    assert "start[-1]" in members(one["layer"])
    two = pliant.find_units(Learned(2), x)  # one column of the start for both layers: their units move together
    assert [group.size for group in two] == [4]
    assert {"start[-1]", "layer.weight_hh_l0[-1]", "layer.weight_hh_l1[-1]"} <= members(two["layer.l0"])
    for units, model in ((one, Learned(1)), (two, Learned(2))):
        assert units.verify(model, x).ok


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_reset_unit_has_fresh_gates_and_sends_nothing_back(kind):
    model, x = Tagger(kind(3, 4, batch_first=True)), torch.randn(2, 5, 3)
    optimizer = torch.optim.Adam(model.parameters())
    units = pliant.find_units(model, x)
    handle = pliant.attach(model, optimizer, pliant.ReDo(tau=1e9, every=1), units=units, seed=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(x).square().sum().backward()
    optimizer.step()
    assert handle.num_resets["layer"] == 4
    now, gates = model.state_dict(), {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    assert not now["layer.weight_hh_l0"].any()  # every unit was reset, so every column is zero
    assert not now["layer.bias_ih_l0"].any()
    assert not now["head.weight"].any()
    assert (now["layer.weight_ih_l0"] != before["layer.weight_ih_l0"]).all()
    assert now["layer.weight_ih_l0"].shape == (4 * gates, 3)
    assert now["layer.weight_ih_l0"].abs().max() <= 0.5  # PyTorch's bound, 1 / sqrt(hidden size)


# ---- parametrised weights ----
def stack(first: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def test_the_older_weight_norm_is_followed_too():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = stack(nn.Linear(4, 5), torch.nn.utils.weight_norm(nn.Linear(5, 6)))
    x = torch.randn(3, 4)
    units = pliant.find_units(model, x)
    assert members(units["2"]) == {"2.weight_g[-2]", "2.weight_v[-2]", "2.bias[-1]", "4.weight[-1]"}
    assert members(units["0"]) == {"0.weight[-2]", "0.bias[-1]", "2.weight_v[-1]"}
    assert [group.reset_preserves_function for group in units] == [False, True, True]
    assert units.verify(model, x).ok


def test_a_unit_under_weight_norm_starts_with_a_fresh_length():
    """The length of a redrawn row is what PyTorch starts with: the norm of such a row."""
    layer = parametrizations.weight_norm(nn.Linear(64, 200))
    fresh = layer.parametrizations.weight.original0.mean().item()
    drawn = initialisers(layer)["parametrizations.weight.original0"]
    assert math.isclose(drawn.scale, fresh, rel_tol=0.02)
    chosen = initialisers(layer, "kaiming_normal")["parametrizations.weight.original0"]
    assert math.isclose(chosen.scale, math.sqrt(2.0))


@pytest.mark.parametrize(
    ("wrap", "word"), [(parametrizations.spectral_norm, "spectral"), (parametrizations.orthogonal, "orthogonal")]
)
def test_layers_whose_weights_depend_on_all_units_are_left_out(wrap, word):
    model, x = stack(nn.Linear(4, 5), wrap(nn.Linear(5, 6))), torch.randn(3, 4)
    units = pliant.find_units(model, x)
    assert [group.name for group in units] == ["4"]  # neither what the layer reads nor what it makes
    for key in (("0.bias", -1), ("2.bias", -1), ("2.parametrizations.weight.original", -1)):
        assert word in units.excluded[key], key
    assert units.verify(model, x).ok


# ---- computed weights ----
class Scaled(nn.Linear):
    """A weight that is computed before it is used."""

    def __init__(self, inputs: int, outputs: int, how: str) -> None:
        super().__init__(inputs, outputs)
        self.how = how
        self.register_buffer("fixed", torch.randn(outputs, inputs))

    def forward(self, x):
        weight = {
            "gain": lambda w: w * 0.5,
            "masked": lambda w: w * self.fixed,
            "tanh": torch.tanh,
            "exp": torch.exp,
            "shifted": lambda w: w + 1.0,
            "offset": lambda w: w + self.fixed,
            "transposed": lambda w: (w.t() * 0.5).t(),
        }[self.how](self.weight)
        return F.linear(x, weight, self.bias)


@pytest.mark.parametrize(
    ("how", "preserves"),
    [
        ("gain", True),
        ("masked", True),
        ("tanh", True),
        ("transposed", True),
        ("exp", False),
        ("shifted", False),
        ("offset", False),
    ],
)
def test_the_promise_to_keep_the_function_is_kept_through_computed_weights(how, preserves):
    model, x = stack(nn.Linear(4, 5), Scaled(5, 6, how)), torch.randn(3, 4)
    units = pliant.find_units(model, x)
    group = units["0"]
    assert {"0.weight[-2]", "0.bias[-1]", "2.weight[-1]"} <= members(group)
    assert {piece.role for piece in group.slices if piece.name == "2.fixed"} <= {"carried"}
    assert group.reset_preserves_function == preserves
    assert units.verify(model, x).ok
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    fixed = model[2].fixed.clone()
    with torch.no_grad():
        model[2].weight[:, 0] = 0.0  # a unit that sends nothing, where zero means nothing
        before = model(x)
    handle = pliant.attach(model, optimizer, pliant.ReDo(tau=1e9, every=1, where="0"), units=units)
    mask = torch.zeros(5, dtype=torch.bool)
    mask[0] = True
    handle._editor.reset(group, mask)
    with torch.no_grad():
        assert torch.allclose(model(x), before, atol=1e-7) == preserves
    assert torch.equal(model[2].fixed, fixed)


def test_a_pruning_mask_is_not_drawn_anew():
    model, x = stack(nn.Linear(4, 5), nn.Linear(5, 6)), torch.randn(3, 4)
    prune.random_unstructured(model[2], "weight", 0.4)
    units = pliant.find_units(model, x)
    assert {"2.weight_orig[-2]", "2.weight_mask[-2]", "2.bias[-1]"} <= members(units["2"])
    mask = model[2].weight_mask.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(model, optimizer, pliant.ReDo(tau=1e9, every=1), units=units)
    model(x).sum().backward()
    optimizer.step()
    assert int(handle.num_resets["2"]) == 6
    assert torch.equal(model[2].weight_mask, mask)


# ---- other networks ----
def test_noise_of_a_tensors_shape_breaks_no_symmetry():
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.mean, self.spread = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)
            self.decode, self.out = nn.Linear(3, 7), nn.Linear(7, 5)

        def forward(self, x):
            h = torch.relu(self.encode(x))
            mean = self.mean(h)
            code = mean + torch.randn_like(mean) * self.spread(h).exp()
            return self.out(torch.relu(self.decode(code)))

    model, x = Autoencoder(), torch.randn(3, 5)
    units = pliant.find_units(model, x)
    assert {group.name: (group.size, group.site) for group in units} == {
        "encode": (8, "hidden"), "mean": (3, "hidden"), "decode": (7, "hidden"),
    }  # fmt: skip
    assert units.verify(model, x).ok


def test_the_pieces_of_a_maxout_unit_are_no_units():
    class Maxout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pieces, self.out = nn.Linear(5, 6 * 3), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(self.pieces(x).unflatten(-1, (6, 3)).amax(-1))

    units = pliant.find_units(Maxout(), torch.randn(3, 5))
    assert [(group.name, group.size) for group in units] == [("pieces", 6)]
    assert "parts" in units.excluded["pieces.weight", -2]


def test_attention_weights_that_nobody_reads_mark_nothing():
    class CrossAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.attention = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.key, self.out = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x, y):
            found, _ = self.attention(self.query(x), self.key(y), self.key(y))  # the weights, averaged, are dropped
            return self.out(found)

    model, x = CrossAttention(), (torch.randn(2, 4, 3), torch.randn(2, 6, 5))
    units = pliant.find_units(model, x)
    heads = units["attention:heads"]
    assert heads.size == 2
    assert heads.reset_preserves_function
    assert members(heads) == {
        "attention.in_proj_weight[-2]", "attention.in_proj_bias[-1]", "attention.out_proj.weight[-1]",
    }  # fmt: skip
    assert units.verify(model, x).ok


def test_messages_on_a_graph_keep_their_units():
    class Messages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.message, self.out = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x, edges):
            sent = torch.relu(self.message(torch.relu(self.embed(x))[edges[0]]))
            return self.out(torch.relu(torch.zeros(len(x), 5).to(sent).index_add(0, edges[1], sent)))

    model, inputs = Messages(), (torch.randn(5, 3), torch.randint(0, 5, (2, 7)))
    units = pliant.find_units(model, inputs)
    assert [(group.name, group.size) for group in units] == [("embed", 6), ("message", 5)]
    assert units.verify(model, inputs).ok


def test_a_fixed_readout_is_read_but_never_zeroed():
    class Echo(nn.Module):
        """Units in front of a random matrix that nobody trains."""

        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(5, 6)
            self.register_buffer("readout", torch.randn(6, 3))

        def forward(self, x):
            return torch.relu(self.inside(x)) @ self.readout

    model, x = Echo(), torch.randn(4, 5)
    group = pliant.find_units(model, x)["inside"]
    assert members(group) == {"inside.weight[-2]", "inside.bias[-1]", "readout[-2]"}
    assert group.role("outgoing") == ()
    assert not group.reset_preserves_function
    seen = capture(model, pliant.find_units(model, x), x)["inside"]
    assert torch.allclose(seen, torch.relu(model.inside(x)), atol=1e-6)
