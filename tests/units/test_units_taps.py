"""Where activations are read: what a tap sees is what a hand-written forward pass computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import zoo
from test_units_zoo import units_of
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO

import pliant
from pliant.stats import Collector
from pliant.stats.capture import capture, named_tensors
from pliant.units.taps import find_taps  # noqa: F401  (the module under test)


def rows(act: Tensor, dim: int = -1) -> Tensor:
    """Units last, everything else a sample."""
    return act.movedim(dim, -1).flatten(0, -2)


def conv_bn(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    a = torch.relu(m[1](m[0](x)))
    b = F.max_pool2d(torch.relu(m[4](m[3](a))), 2)
    return {"0": rows(a, 1), "3": rows(b, 1), "8": torch.relu(m[8](b.flatten(1)))}


def conv_gn(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    a = torch.relu(m[1](m[0](x)))
    b = torch.relu(m[4](m[3](a))).mean((2, 3))
    return {"0": rows(a, 1), "3": b[:, :4], "3#2": b[:, 4:]}


def depthwise(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    a = m[2](torch.relu(m[0](x)))
    return {"0": rows(a, 1), "3": torch.relu(m[3](a)).mean((2, 3))}


def grouped(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    a = torch.relu(m[0](x))
    b = torch.relu(m[2](a))
    inner = a.unflatten(1, (2, 3))  # [N, group, own, H, W]
    blocks = b.unflatten(1, (2, 4))
    return {
        "0": rows(blocks, 1),
        "0#2": rows(inner, 2),
        "2": rows(blocks, 2),
        "4": torch.relu(m[4](b)).mean((2, 3)),
    }


def resnet(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    stem = F.relu(m.bn(m.stem(x)))
    one, two = m.layer1, m.layer2
    first = F.relu(one.bn1(one.conv1(stem)))
    middle = one(stem)
    return {
        "layer1.conv1": rows(first, 1),
        "layer2.conv1": rows(F.relu(two.bn1(two.conv1(middle))), 1),
        "layer2.conv2": two(middle).mean((2, 3)),
    }


def unet(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    skip = F.relu(m.down1(x))
    deep = F.relu(m.down2(F.max_pool2d(skip, 2)))
    up = F.relu(m.up(deep))
    merged = F.relu(m.merge(torch.cat([up, skip], 1)))
    return {"down2": rows(deep, 1), "up": rows(up, 1), "merge": rows(merged, 1)}


def mixer(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    b = m.block
    x = m.patch(x).flatten(2).transpose(1, 2)
    tokens = F.gelu(b.token1(b.norm1(x).transpose(1, 2)))
    x = x + b.token2(tokens).transpose(1, 2)
    return {"block.token1": rows(tokens), "block.channel1": rows(F.gelu(b.channel1(b.norm2(x))))}


def encoder(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = m.embed(x)
    found = {}
    for i, layer in enumerate(m.encoder.layers):
        attn = layer.self_attn
        source = layer.norm1(x) if layer.norm_first else x
        q, k, v = F.linear(source, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))  # [N, heads, T, dims]
        heads = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2)  # [N, T, heads, dims]
        found[f"encoder.layers.{i}.self_attn:heads"] = rows(heads, -2)
        after = x + attn.out_proj(heads.flatten(-2))
        after = after if layer.norm_first else layer.norm1(after)
        hidden = layer.activation(layer.linear1(layer.norm2(after) if layer.norm_first else after))
        found[f"encoder.layers.{i}.linear1"] = rows(hidden)
        x = layer(x)
    return found


def vit(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = m.patch(x).flatten(2).transpose(1, 2) + m.position
    b = m.block
    x = x + b.attn(b.norm1(x))
    q, k, v = b.attn.qkv(b.norm1(m.patch(m.seen).flatten(2).transpose(1, 2) + m.position)).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
    heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return {"block.fc1": rows(F.gelu(b.fc1(b.norm2(x)))), "block.attn.qkv:heads": rows(heads, -2)}


def vit_with_input(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    m.seen = x
    return vit(m, x)


def swiglu(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    a = torch.relu(m.embed(x))
    b = F.silu(m.gate(a)) * m.value(a)
    c = torch.relu(m.down(b))
    return {"embed": a, "gate": b, "down": c, "fused": F.glu(m.fused(c))}


def reused(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    a = torch.relu(m.first(x))
    return {"first": torch.cat([a, torch.relu(m.again(a))])}


def actor_critic(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    t = torch.tanh(m.trunk[0](x))
    return {"trunk.0": t, "actor.0": torch.tanh(m.actor[0](t)), "critic.0": torch.relu(m.critic[0](t))}


def raw(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    a = torch.relu(x @ m.w1 + m.b1)
    return {"w1": a, "w2": torch.relu(a @ m.w2 + m.b2)}


def layer_by_layer(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A recurrent network of several layers, unrolled into networks of one layer each."""
    layer, found = m.layer, {}
    ways = ("", "_reverse") if layer.bidirectional else ("",)
    for at in range(layer.num_layers):
        one = type(layer)(
            x.shape[-1], layer.hidden_size, bias=layer.bias, batch_first=layer.batch_first,
            bidirectional=layer.bidirectional, **({"nonlinearity": "relu"} if isinstance(layer, nn.RNN) else {}),
        ).to(x)  # fmt: skip
        own = {key: value for key, value in layer.state_dict().items() if f"_l{at}" in key}
        one.load_state_dict({key.replace(f"_l{at}", "_l0"): value for key, value in own.items()})
        x, _ = one(x)
        names = [f"layer.l{at}{way}" for way in ways] if len(ways) * layer.num_layers > 1 else ["layer"]
        found.update({name: rows(part) for name, part in zip(names, x.chunk(len(ways), -1), strict=True)})
    return found


def cell_loop(m: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    x = m.embed(tokens)
    hidden, state, lower, upper = m.start.expand(len(x), -1), None, [], []
    for step in range(x.shape[1]):
        hidden = m.lower(x[:, step], hidden)
        state = m.upper(hidden, state)
        lower.append(hidden)
        upper.append(state[0])
    return {"embed": rows(x), "lower": torch.cat(lower), "upper": torch.cat(upper)}


def forecaster(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    x = F.gelu(m.norm(m.conv((x * m.scale + m.shift).transpose(1, 2))))
    return {"conv": rows(x, 1), "encoder": rows(m.encoder(x.transpose(1, 2))[0])}


def tcn(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = m[0](x.transpose(1, 2))
    found = {}
    for name in ("1", "2"):
        block = m.get_submodule(name)
        found[f"{name}.conv1"] = rows(F.relu(block.conv1(F.pad(x, (block.pad, 0)))), 1)
        x = block(x)
    return {**found, "5": F.relu(m[5](x.mean(2)))}


def recommender(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    counts, user = x[:, :2].float(), m.user.weight[x[:, 2]]
    items = m.items.weight[x[:, 3:]].amax(1)
    return {"user": user, "items": items, "deep": torch.relu(m.deep(torch.cat([user, items, counts], 1)))}


def tied(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    outer = torch.tanh(m.outer(x))
    return {"outer": outer, "inner": torch.tanh(m.inner(outer))}


TRUTH: dict[str, Callable[[nn.Module, Tensor], dict[str, Tensor]]] = {
    "mlp": lambda m, x: {"0": torch.relu(m[0](x)), "2": torch.tanh(m[2](torch.relu(m[0](x))))},
    "mlp_functional": lambda m, x: {"fc1": F.relu(m.fc1(x)), "fc2": F.gelu(m.fc2(F.relu(m.fc1(x))))},
    "mlp_reused": reused,
    "mlp_raw": raw,
    "tied_language_model": lambda m, x: {"fc1": rows(torch.relu(m.fc1(m.embed(x))))},
    "conv_bn_flatten": conv_bn,
    "conv_groupnorm": conv_gn,
    "conv_depthwise": depthwise,
    "conv_grouped": grouped,
    "resnet_basic": resnet,
    "unet": unet,
    "mlp_mixer": mixer,
    "transformer_post_norm": encoder,
    "transformer_norm_first": encoder,
    "vit": vit_with_input,
    "actor_critic": actor_critic,
    "swiglu": swiglu,
    "tied_autoencoder": lambda m, x: {"encoder": torch.relu(m.encoder(x))},
    "tied_autoencoder_deep": tied,
    "lstm": layer_by_layer,
    "lstm_two_layers": layer_by_layer,
    "gru_bidirectional": layer_by_layer,
    "rnn_time_first": layer_by_layer,
    "cell_loop": cell_loop,
    "forecaster": forecaster,
    "tcn_weight_norm": tcn,
    "recommender_concat": recommender,
}


def sort_rows(act: Tensor) -> Tensor:
    """Samples in a canonical order: which position is which sample is nobody's business."""
    return act[torch.argsort(act.double().sum(1))]


@pytest.mark.parametrize("size", [4, 7])  # 4: as exported; 7: another batch size, also through replays
@pytest.mark.parametrize("name", TRUTH)
def test_captured_activations_are_the_true_ones(name, size):
    case, units = ZOO[name], units_of(name)
    model, x = case.model(seed=2), case.batch(size, seed=3)
    found = capture(model, units, x)
    model.eval()
    with torch.no_grad(), pliant.units.export.plain_attention():
        truth = TRUTH[name](model, x)
    for group, want in truth.items():
        got = found[group]
        assert got.shape == want.shape, group
        assert torch.allclose(sort_rows(got), sort_rows(want), atol=1e-6), group
    assert all(act.shape[1] == units[group].size for group, act in found.items())


@pytest.mark.parametrize("name", TRUTH)
def test_streamed_means_are_those_of_the_training_forward(name):
    """The collector in training mode, two micro-batches; no dropout, so that the truth can be written down."""
    case, units = ZOO[name], units_of(name)
    model = case.model(seed=2)
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.modules.batchnorm._BatchNorm)):
            module.eval()  # fixed statistics; the modules that are hooked still train
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            module.dropout = 0.0
    if hasattr(model, "rate"):
        model.rate = 0.0
    hooked = {group.tap.module for group in units if group.tap}
    assert all(model.get_submodule(at).training or isinstance(model.get_submodule(at), nn.Dropout) for at in hooked)
    for at in hooked:
        if isinstance(model.get_submodule(at), nn.Dropout):
            model.get_submodule(at).train()
            model.get_submodule(at).p = 0.0
    wanted = {g.name: frozenset({"mean_abs_activation", "mean_activation"}) for g in units if g.tap}
    collector = Collector(model, units, wanted, named_tensors(model))
    batches = [case.batch(4, seed=3), case.batch(3, seed=4)]
    with pliant.units.export.plain_attention():
        for x in batches:
            zoo.loss_of(model(x)).backward()
    collector.finish(1, collector.of(list(units)))
    collector.look(collector.of(list(units)))
    collector.remove()
    with torch.no_grad(), pliant.units.export.plain_attention():
        truths = [TRUTH[name](model, x) for x in batches]
    for group in truths[0]:
        act = torch.cat([truth[group] for truth in truths])
        stats = collector.stats(units[group])
        assert torch.allclose(stats.mean_abs_activation, act.abs().mean(0), atol=1e-6), group
        assert torch.allclose(stats.mean_activation, act.mean(0), atol=1e-6), group
        assert stats.step == 1


class WithDropout(nn.Module):
    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.fc1, self.act, self.drop, self.fc2 = nn.Linear(5, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3)
        self.functional = functional

    def forward(self, x):
        h = F.relu(self.fc1(x)) if self.functional else self.act(self.fc1(x))
        h = F.dropout(h, 0.5, self.training) if self.functional else self.drop(h)
        return self.fc2(h)


@pytest.mark.parametrize("functional", [False, True])
def test_dropout_before_the_consumer_fakes_no_dead_units(functional):
    model = WithDropout(functional)
    x = torch.randn(32, 5)
    units = pliant.find_units(model, x)
    assert units["fc1"].tap.replay == functional
    collector = Collector(model, units, {"fc1": frozenset({"mean_abs_activation"})}, named_tensors(model))
    model(x).sum().backward()
    collector.finish(1, collector.of(list(units)))
    collector.look(collector.of(list(units)))
    with torch.no_grad():
        truth = F.relu(model.fc1(x))
    assert torch.allclose(collector.stats(units["fc1"]).mean_abs_activation, truth.abs().mean(0), atol=1e-6)


def test_a_replay_follows_the_weights():
    """Replayed activations use the parameters as they are, not as they were at export."""
    case = ZOO["mlp_raw"]
    model, x = case.model(), case.batch()
    units = units_of("mlp_raw")
    before = capture(model, units, x)["w1"]
    with torch.no_grad():
        model.w1.mul_(2)
        model.b1.add_(0.5)
    after = capture(model, units, x)["w1"]
    assert not torch.allclose(before, after)
    assert torch.allclose(after, torch.relu(x @ model.w1 + model.b1), atol=1e-6)


def test_inputs_of_an_impossible_shape_for_a_replay_are_explained():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2 = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(3, 8))

        def forward(self, x):
            return F.linear(torch.relu(F.linear(x.reshape(6, 4), self.w1)), self.w2)

    model = Fixed()
    units = pliant.find_units(model, torch.randn(3, 8))
    assert units["w1"].tap.replay
    assert capture(model, units, torch.randn(2, 12))["w1"].shape == (6, 8)


def test_a_group_without_a_tap_says_so():
    case, units = ZOO["lstm_projected"], units_of("lstm_projected")
    assert units["layer"].tap is None
    assert "none" in str(units)
    model = case.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(pliant.IllegalConfiguration, match="cannot be seen"):
        pliant.attach(model, optimizer, pliant.ReDo(), units=units)
    assert capture(model, units, case.batch()).keys() == {"layer.weight_hr_l0"}


def test_a_replay_follows_the_models_type():
    """Zeros that a recurrent layer starts from are made in the type of the activations, not in that of the export."""
    case, units = ZOO["lstm_two_layers"], units_of("lstm_two_layers")
    model, x = case.model(seed=2).double(), case.batch().double()
    found = capture(model, units, x)["layer.l0"]
    assert found.dtype == torch.float64
    with torch.no_grad():
        truth = layer_by_layer(model.eval(), x)["layer.l0"]
    assert torch.allclose(sort_rows(found), sort_rows(truth), atol=1e-12)
