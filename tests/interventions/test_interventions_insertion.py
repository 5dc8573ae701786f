"""Where norms and dropout are put in, what they compute, and what is refused with which reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pliant
from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.insertion import insert_dropout, insert_normalization
from pliant.interventions import AdaptiveNormalization, InsertDropout, InsertNormalization
from pliant.nn.wrapped import Dropped, Normalized

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))


class Functional(nn.Module):
    """Activations as functions; one layer's output goes into two of them, one into none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        h = self.first(x)
        h = self.second(torch.cat([F.relu(h), torch.sigmoid(-h)], -1)[:, :4])
        return self.head(self.third(F.gelu(h)))


def test_norms_stand_between_layers_and_activations():
    model, plain = mlp(), mlp()
    assert insert_normalization(model, example_inputs=X) == ("0", "2")
    want = plain[0](X)
    want = torch.relu(F.layer_norm(want, (8,)))
    want = plain[4](torch.tanh(F.layer_norm(plain[2](want), (6,))))
    assert torch.allclose(model(X), want, atol=1e-6)
    assert list(model.state_dict()) == [
        *("0.layer.weight", "0.layer.bias", "0.norm.weight", "0.norm.bias"),
        *("2.layer.weight", "2.layer.bias", "2.norm.weight", "2.norm.bias"),
        *("4.weight", "4.bias"),
    ]


def test_the_output_and_linear_layers_get_none():
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.linear, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return torch.tanh(self.head(self.linear(F.relu(self.first(x)))))

    model = Squashed()
    assert insert_normalization(model, example_inputs=X) == ("first",)
    with pytest.raises(IllegalConfiguration, match=r"'linear': the output of 'linear' does not go into an activation"):
        insert_normalization(Squashed(), example_inputs=X, where="linear")


def test_images_are_normalised_over_channels_and_positions():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    x = torch.randn(5, 2, 4, 4)
    insert_normalization(model, example_inputs=x)
    assert isinstance(model[0].norm, nn.GroupNorm)
    hidden = model[0](x).detach()
    assert torch.allclose(hidden.flatten(1).mean(1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(hidden.flatten(1).std(1, correction=0), torch.ones(5), atol=1e-3)
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    insert_normalization(other, "batch", example_inputs=x)
    assert isinstance(other[0].norm, nn.BatchNorm2d)


def test_a_batch_norm_is_calibrated_on_the_example_batch():
    model, plain = mlp(), mlp()
    insert_normalization(model, "batch", example_inputs=X)
    norm, hidden = model[0].norm, plain[0](X).detach()
    assert torch.allclose(norm.running_mean, hidden.mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, hidden.var(0, correction=0), atol=1e-6)
    assert torch.allclose(norm.weight, (norm.running_var + norm.eps).sqrt())
    assert int(norm.num_batches_tracked) == 0
    other = torch.randn(7, 4)
    assert torch.allclose(model.eval()(other), plain(other), atol=1e-6)
    assert torch.allclose(model.train()(X), plain(X), atol=1e-5)  # the example batch itself, also in training mode
    assert not torch.allclose(model(other), plain(other), atol=1e-3)


def test_calibration_leaves_other_buffers_and_modes_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    model[4].eval()
    before = model[1].running_mean.clone()
    insert_normalization(model, "batch", example_inputs=X)
    assert torch.equal(model[1].running_mean, before)
    assert (model[4].training, model[3].training, model[1].training) == (False, True, True)


@pytest.mark.parametrize("gate", ["trained", "fixed"])
def test_a_closed_gate_keeps_the_function_to_the_bit_and_an_open_one_is_the_norm(gate):
    model, plain, normed = mlp(), mlp(), mlp()
    insert_normalization(model, example_inputs=X, gate=gate)
    insert_normalization(normed, example_inputs=X)
    assert torch.equal(model(X), plain(X))
    assert isinstance(model[0].gate, nn.Parameter) == (gate == "trained")
    with torch.no_grad():
        model[0].gate.fill_(1.0)
        model[2].gate.fill_(1.0)
    assert torch.allclose(model(X), normed(X), atol=1e-6)


def test_a_trained_gate_opens_by_itself():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pliant.attach(model, optimizer, InsertNormalization(gate=True), example_inputs=X)
    model(X).square().sum().backward()
    assert model[0].gate.grad.abs() > 0
    optimizer.step()
    assert model[0].gate != 0


def test_functional_activations_and_layers_that_are_read_twice():
    assert insert_normalization(Functional(), example_inputs=X) in (("first", "second"), ("second",))
    model = mlp()
    assert insert_normalization(model, example_inputs=X, where="2") == ("2",)
    assert isinstance(model[0], nn.Linear)


class Conv1D(nn.Module):
    """As in GPT-2: a linear layer whose weight is inputs x outputs; it is known by its name."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class WrittenOut(nn.Module):
    """Sums of a tensor and its powers inside an activation, as GPT-2's GELU; outside, it is a residual sum."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, x):
        y = 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0))))
        return x + y if self.residual else y


def gpt2_mlp(residual: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Conv1D(8, 4), WrittenOut(residual), Conv1D(2, 8))


def test_the_feed_forward_part_of_gpt2():
    x, plain = torch.randn(2, 5, 4), gpt2_mlp()
    model, dropped = gpt2_mlp(), gpt2_mlp()
    assert insert_normalization(model, example_inputs=x) == ("0",)
    assert torch.allclose(model(x), plain[2](plain[1](F.layer_norm(plain[0](x), (8,)))), atol=1e-6)
    assert insert_dropout(dropped, 0.5, example_inputs=x) == ("2",)
    assert torch.equal(dropped.eval()(x), plain(x))
    with pytest.raises(NotYetSupported, match="no batch norm can be put behind '0'"):
        insert_normalization(gpt2_mlp(), "batch", example_inputs=x)
    with pytest.raises(NoEffect, match="does not go into an activation alone, but also into 'addmm'"):
        insert_normalization(gpt2_mlp(residual=True), example_inputs=x)


class Recurrent(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layer, self.head = how, nn.GRU(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        h = self.layer(x)[0]
        return self.head({"all": lambda: h, "mean": lambda: h.mean(1), "last": lambda: h[:, -1]}[self.how]())


@pytest.mark.parametrize("how", ["all", "mean", "last"])
def test_dropout_stands_behind_recurrent_layers_and_norms_do_not_stand_in_them(how):
    torch.manual_seed(0)
    model, x = Recurrent(how), torch.randn(3, 5, 4)
    before = model(x)
    with pytest.raises(NoEffect, match="none of its weights"):
        insert_normalization(model, example_inputs=x)
    assert insert_dropout(model, 0.5, example_inputs=x) == ("head",)
    assert not torch.allclose(model(x), before)
    assert torch.allclose(model.eval()(x), before)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 8)

    def forward(self, x):
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t())


def test_reasons():
    model = mlp()
    insert_normalization(model, example_inputs=X)
    with pytest.raises(NoEffect, match="has a norm behind it already"):
        insert_normalization(model, example_inputs=X)
    with pytest.raises(NoEffect, match=r"the weight of 'encoder' is used by other code, too"):
        insert_normalization(Tied(), example_inputs=X)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 1), nn.Linear(8, 2))
    with pytest.raises(NoEffect, match="fused inference path of TransformerEncoderLayer"):
        insert_normalization(encoder, example_inputs=torch.randn(2, 3, 4))
    with pytest.raises(NotYetSupported, match=r"output has 3 dimensions.*kind='layer'"):
        insert_normalization(mlp(), "batch", example_inputs=torch.randn(2, 3, 4))
    for options, message in (({"kind": "group"}, "kind='group'"), ({"gate": "open"}, "gate='open'")):
        with pytest.raises(IllegalConfiguration, match=message):
            insert_normalization(mlp(), example_inputs=X, **options)
    with pytest.raises(IllegalConfiguration, match="kind='group'"):
        pliant.attach(mlp(), torch.optim.SGD(mlp().parameters(), 0.1), InsertNormalization("group"), example_inputs=X)


def test_the_layer_s_attributes_are_still_there_but_not_its_weights():
    wrapped = Normalized(nn.Conv2d(1, 2, 3, stride=2), nn.GroupNorm(1, 2))
    assert wrapped.stride == (2, 2)
    for name in ("weight", "bias", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(wrapped, name)


def test_new_parameters_join_the_group_of_their_layer():
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    insert_normalization(model, example_inputs=X, optimizers=[optimizer])
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    assert sizes == [4, 4]
    muon = torch.optim.Muon([p for p in mlp().parameters() if p.ndim == 2]) if hasattr(torch.optim, "Muon") else None
    assert muon is None or len(muon.param_groups[0]["params"]) == 3


def test_vectors_do_not_join_a_group_of_muon():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
    muon = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2])
    rest = torch.optim.SGD([p for p in model.parameters() if p.ndim == 1], lr=0.1)
    insert_normalization(model, example_inputs=X, optimizers=[muon, rest])
    assert len(rest.param_groups[0]["params"]) == 3


def test_a_layer_that_nobody_trains_gets_a_norm_that_nobody_trains():
    model = mlp()
    optimizer = torch.optim.SGD(model[2:].parameters(), lr=0.1)
    insert_normalization(model, example_inputs=X, optimizers=[optimizer])
    assert model[0].layer.weight.requires_grad
    assert not model[0].norm.weight.requires_grad
    assert model[2].norm.weight.requires_grad


# ---- dropout ----
def test_dropout_stands_behind_activations_and_says_nothing_in_evaluation():
    model, plain = mlp(), mlp()
    assert insert_dropout(model, 0.5, example_inputs=X) == ("2", "4")
    assert isinstance(model[2], Dropped)
    assert torch.equal(model.eval()(X), plain(X))
    torch.manual_seed(3)
    got = model.train()(X)
    torch.manual_seed(3)
    want = plain[4](F.dropout(torch.tanh(plain[2](F.dropout(torch.relu(plain[0](X)), 0.5))), 0.5))
    assert torch.equal(got, want)


def test_dropout_that_is_there_is_not_doubled_and_bad_values_are_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    with pytest.raises(NoEffect, match="'3' has dropout before it already"):
        insert_dropout(model, example_inputs=X)
    for p in (-0.1, 1.0):
        with pytest.raises(IllegalConfiguration, match=f"p={p}"):
            insert_dropout(mlp(), p, example_inputs=X)
        with pytest.raises(IllegalConfiguration, match=f"p={p}"):
            pliant.attach(mlp(), torch.optim.SGD(mlp().parameters(), 0.1), InsertDropout(p), example_inputs=X)


# ---- gates that open when they are needed ----
def adaptive(model, lr=0.0, **options):
    method = AdaptiveNormalization(**{"rate": 0.5, "every": 1, "tau": 0.0, **options})
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    handle = pliant.attach(model, optimizer, method, example_inputs=X)

    def step():
        optimizer.zero_grad()
        model(X).sum().backward()
        optimizer.step()

    return step, handle


def kill(model, at, count):
    with torch.no_grad():
        model[at].layer.weight[:count] = 0
        model[at].layer.bias[:count] = -1


def test_a_gate_opens_while_units_are_dormant_with_hysteresis():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    step, handle = adaptive(model, dormant_above=0.35, dormant_below=0.15, growth_above=1e9, growth_below=1e9)
    gates = []
    with torch.no_grad():
        model[0].layer.bias.fill_(5.0)  # every unit is alive
    # the norm would revive them: its gain and offset keep them where they are put
    with torch.no_grad():
        model[0].norm.weight.zero_()
    for dead in (0, 3, 4, 2, 1, 1):
        with torch.no_grad():
            model[0].layer.weight.zero_()
            model[0].layer.bias.fill_(5.0)
            model[0].norm.bias.fill_(5.0)
            model[0].layer.bias[:dead] = -5.0
            model[0].norm.bias[:dead] = -5.0
        step()
        gates.append(float(model[0].gate))
    # none, 0.3: neither; 0.4: in trouble; 0.2: still; 0.1: well again
    assert gates == pytest.approx([0.0, 0.0, 0.5, 0.75, 0.75, 0.75])
    events = [event for event in handle.events if event.action == "assign"]
    assert (events[0].step, events[0].tensors) == (3, ("0.gate",))
    assert "dormant fraction above 0.35" in events[0].reason


def test_a_gate_opens_when_weights_grow():
    model = mlp()
    step, handle = adaptive(model, growth_above=2.0, growth_below=1.5, dormant_above=1.0, dormant_below=1.0)
    step()
    with torch.no_grad():
        model[2].layer.weight.mul_(3.0)
    step()
    assert (float(model[0].gate), float(model[2].gate)) == (0.0, 0.5)
    assert handle.record()["AdaptiveNormalization.gate"] == pytest.approx(0.25)
    assert handle.record()["AdaptiveNormalization.in_trouble"] == pytest.approx(0.5)
    with torch.no_grad():
        model[2].layer.weight.div_(3.0)
    step()
    assert float(model[2].gate) == 0.5  # it stays as far open as it is


def test_the_optimizer_does_not_train_the_gate_and_the_checks_are_refused_out_of_range():
    model = mlp()
    adaptive(model)
    assert not isinstance(model[0].gate, nn.Parameter)
    for options, message in (
        ({"rate": 0.0}, "rate=0.0"),
        ({"every": 0}, "every=0"),
        ({"dormant_below": 0.5}, "dormant_below=0.5"),
        ({"growth_below": 9.0}, "growth_below=9.0"),
        ({"tau": -1.0}, "tau=-1.0"),
    ):
        with pytest.raises(IllegalConfiguration, match=message):
            adaptive(mlp(), **options)
