"""The zoo: multi-layer perceptrons, tied weights, several heads, gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_base import Group, case, features, images, tokens

# ---- multi-layer perceptrons ----
_MLP = {
    "0": Group(8, "0.weight[-2] 0.bias[-1] 2.weight[-1]"),
    "2": Group(6, "2.weight[-2] 2.bias[-1] 4.weight[-1]"),
}


@case("mlp", features(5), _MLP, excluded={"0.weight[-1]": "input", "4.weight[-2]": "output", "4.bias[-1]": "output"})
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(5, 8), nn.Linear(8, 6, bias=False), nn.Linear(6, 3)
        self.rate = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.fc1(x)), self.rate, self.training)
        return self.fc3(F.gelu(self.fc2(x)))


@case(
    "mlp_functional",
    features(5),
    {
        "fc1": Group(8, "fc1.weight[-2] fc1.bias[-1] fc2.weight[-1]", tap="replay"),
        "fc2": Group(6, "fc2.weight[-2] fc3.weight[-1]"),
    },
)
def mlp_functional() -> nn.Module:
    return Functional()


class Reused(nn.Module):
    """One square layer twice: its rows and its columns are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.again(torch.relu(self.again(x)))))


@case(
    "mlp_reused",
    features(5),
    {
        "first": Group(
            8, "first.weight[-2] first.bias[-1] again.weight[-2] again.weight[-1] again.bias[-1] last.weight[-1]"
        )
    },
)
def mlp_reused() -> nn.Module:
    return Reused()


class RawParameters(nn.Module):
    """No layers at all: parameters and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(5, 8) * 0.5), nn.Parameter(torch.zeros(8))
        self.w2, self.b2 = nn.Parameter(torch.randn(8, 6) * 0.4), nn.Parameter(torch.zeros(6))
        self.w3 = nn.Parameter(torch.randn(3, 6) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.addmm(self.b1, x, self.w1))
        x = torch.relu(x @ self.w2 + self.b2)
        return x @ self.w3.t()


@case(
    "mlp_raw",
    features(5),
    {
        "w1": Group(8, "w1[-1] b1[-1] w2[-2]", tap="replay"),
        "w2": Group(6, "w2[-1] b2[-1] w3[-1]", tap="replay"),
    },
    init="kaiming_uniform",
)
def mlp_raw() -> nn.Module:
    return RawParameters()


# ---- tied weights ----
class TiedLanguageModel(nn.Module):
    """Embedding and head share one matrix; the hidden layer between them is an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.fc2(torch.relu(self.fc1(x))))


@case(
    "tied_language_model",
    tokens(4, 11),
    {
        "embed:residual": Group(
            6,
            "embed.weight[-1] fc1.weight[-1] fc2.weight[-2] fc2.bias[-1]",
            site="residual",
            preserves=False,
            tap="any",
        ),
        "fc1": Group(8, "fc1.weight[-2] fc1.bias[-1] fc2.weight[-1]"),
    },
    excluded={"embed.weight[-2]": "data"},
)
def tied_language_model() -> nn.Module:
    return TiedLanguageModel()


class TiedAutoencoder(nn.Module):
    """Decoder weights are the encoder's, transposed: a row produces its unit and consumes it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 8)
        self.decoder_bias = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t(), self.decoder_bias)


@case(
    "tied_autoencoder",
    features(5),
    {"encoder": Group(8, "encoder.weight[-2] encoder.bias[-1]", preserves=False, tap="replay")},
    init={"decoder_bias": "torch_default"},
)
def tied_autoencoder() -> nn.Module:
    return TiedAutoencoder()


class DeepTiedAutoencoder(nn.Module):
    """Two tied layers: the inner decoder produces units of the outer one, which are the encoder's own."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = nn.Linear(5, 8), nn.Linear(8, 3)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.inner(torch.tanh(self.outer(x))))
        return F.linear(
            torch.tanh(F.linear(code, self.inner.weight.t(), self.bias1)), self.outer.weight.t(), self.bias2
        )


@case(
    "tied_autoencoder_deep",
    features(5),
    {
        "outer": Group(8, "outer.weight[-2] outer.bias[-1] inner.weight[-1] bias1[-1]", preserves=False, tap="hook"),
        "inner": Group(3, "inner.weight[-2] inner.bias[-1]", preserves=False, tap="replay"),
    },
    excluded={"outer.weight[-1]": "input", "bias2[-1]": "input"},
    init={"bias1": "torch_default", "bias2": "torch_default"},
)
def tied_autoencoder_deep() -> nn.Module:
    return DeepTiedAutoencoder()


# ---- two heads, gates ----
class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.actor = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
        self.critic = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.actor(hidden), self.critic(hidden)


@case(
    "actor_critic",
    features(5),
    {
        "trunk.0": Group(8, "trunk.0.weight[-2] trunk.0.bias[-1] actor.0.weight[-1] critic.0.weight[-1]"),
        "actor.0": Group(6, "actor.0.weight[-2] actor.0.bias[-1] actor.2.weight[-1]"),
        "critic.0": Group(7, "critic.0.weight[-2] critic.0.bias[-1] critic.2.weight[-1]"),
    },
)
def actor_critic() -> nn.Module:
    return ActorCritic()


class PixelActorCritic(nn.Module):
    """A convolutional trunk, flattened; policy and value read the same features; the value also sees the step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.trunk = nn.Conv2d(2, 4, 2), nn.Linear(4 * 9, 8)
        self.policy, self.value, self.log_std = nn.Linear(8, 3), nn.Linear(8, 1), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.relu(self.trunk(torch.relu(self.conv(x)).flatten(1)))
        mean = self.policy(hidden)
        return mean, mean + self.log_std.exp(), self.value(hidden).squeeze(-1)


@case(
    "actor_critic_pixels",
    images(2, 4),
    {
        "conv": Group(4, "conv.weight[-4] conv.bias[-1] trunk.weight[-1]"),
        "trunk": Group(8, "trunk.weight[-2] trunk.bias[-1] policy.weight[-1] value.weight[-1]"),
    },
    excluded={"log_std[-1]": "output", "value.bias[-1]": "entry"},
    init={"log_std": "zeros"},
)
def actor_critic_pixels() -> nn.Module:
    return PixelActorCritic()


class DuelingNetwork(nn.Module):
    """A value and one advantage per action, centred over the actions."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(5, 8)
        self.value, self.advantage = (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, n)) for n in (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.trunk(x))
        advantage = self.advantage(hidden)
        return self.value(hidden) + advantage - advantage.mean(dim=1, keepdim=True)


@case(
    "dueling_dqn",
    features(5),
    {
        "trunk": Group(8, "trunk.weight[-2] trunk.bias[-1] value.0.weight[-1] advantage.0.weight[-1]"),
        "value.0": Group(6, "value.0.weight[-2] value.0.bias[-1] value.2.weight[-1]"),
        "advantage.0": Group(6, "advantage.0.weight[-2] advantage.0.bias[-1] advantage.2.weight[-1]"),
    },
)
def dueling_dqn() -> nn.Module:
    return DuelingNetwork()


class NoisyLinear(nn.Module):
    """Weights and biases with learned noise, as exploration in Rainbow."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_mu = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)
        self.weight_sigma = nn.Parameter(torch.rand(outputs, inputs) * 0.1)
        self.bias_mu, self.bias_sigma = nn.Parameter(torch.zeros(outputs)), nn.Parameter(torch.rand(outputs) * 0.1)
        self.register_buffer("weight_noise", torch.randn(outputs, inputs))
        self.register_buffer("bias_noise", torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_mu + self.weight_sigma * self.weight_noise
        return F.linear(x, weight, self.bias_mu + self.bias_sigma * self.bias_noise)


def _noisy(at: str, dims: str) -> str:
    return " ".join(f"{at}.{part}[{dims}]" for part in ("weight_mu", "weight_sigma", "weight_noise"))


@case(
    "noisy_network",
    features(5),
    {
        "0.weight_mu": Group(
            8,
            f"{_noisy('0', '-2')} 0.bias_mu[-1] 0.bias_sigma[-1] 0.bias_noise[-1] {_noisy('2', '-1')}",
        ),
        "2.weight_mu": Group(6, f"{_noisy('2', '-2')} 2.bias_mu[-1] 2.bias_sigma[-1] 2.bias_noise[-1] 4.weight[-1]"),
    },
    init={"*.weight_mu": "torch_default", "*_sigma": "ones", "*.bias_mu": "zeros"},
)
def noisy_network() -> nn.Module:
    return nn.Sequential(NoisyLinear(5, 8), nn.ReLU(), NoisyLinear(8, 6), nn.ReLU(), nn.Linear(6, 3))


class SwiGLU(nn.Module):
    """Gate and value are one unit each, produced by two layers, or by two halves of one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 4)
        self.gate, self.value, self.down = nn.Linear(4, 7, bias=False), nn.Linear(4, 7, bias=False), nn.Linear(7, 4)
        self.fused, self.out = nn.Linear(4, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.embed(x))
        x = self.down(F.silu(self.gate(x)) * self.value(x))
        return self.out(F.glu(self.fused(torch.relu(x)), dim=-1))


@case(
    "swiglu",
    features(5),
    {
        "embed": Group(4, "embed.weight[-2] embed.bias[-1] gate.weight[-1] value.weight[-1]", tap="hook"),
        "gate": Group(7, "gate.weight[-2] value.weight[-2] down.weight[-1]"),
        "down": Group(4, "down.weight[-2] down.bias[-1] fused.weight[-1]"),
        "fused": Group(6, "fused.weight[-2] fused.bias[-1] out.weight[-1]"),
    },
)
def swiglu() -> nn.Module:
    return SwiGLU()
