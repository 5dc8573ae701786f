"""The zoo: products of activations outside multi-head attention, complex numbers, Fourier layers, interleaved gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_base import Group, case, sequence


class GraphConvolution(nn.Module):
    """Nodes whose edges are the similarity of their inputs: products of activations mix nodes, never features."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        edges = (x @ x.mT).softmax(-1)
        x = F.relu(edges @ self.one(x))
        return self.head(F.elu(torch.einsum("bij,bjf->bif", edges, self.two(x))).mean(1))


@case(
    "graph_convolution",
    sequence(5, 4),
    {
        "one": Group(6, "one.weight[-2] one.bias[-1] two.weight[-1]"),
        "two": Group(5, "two.weight[-2] two.bias[-1] head.weight[-1]", tap="any"),
    },
)
def graph_convolution() -> nn.Module:
    return GraphConvolution()


class ComplexRotary(nn.Module):
    """Rotary embeddings as complex numbers, and key-value heads repeated: Llama as its authors wrote it."""

    angles: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, size) for size in (16, 8, 8))
        self.out, self.head = nn.Linear(16, 6), nn.Linear(6, 2)
        self.register_buffer("angles", torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1])))

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (2, 2)))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(self.angles), self.angles)).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (4, 4)).transpose(1, 2)
        key, value = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.key, self.value))
        key, value = (item.repeat_interleave(2, 1) for item in (self.turned(key), value))
        mixed = F.scaled_dot_product_attention(self.turned(query), key, value, is_causal=True)
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


_QUERIES = "query.weight[-2] query.bias[-1] out.weight[-1]"


@case(
    "rotary_complex",
    sequence(5, 6),
    {
        "query:heads": Group(
            2, f"{_QUERIES} key.weight[-2] key.bias[-1] value.weight[-2] value.bias[-1]", site="heads"
        ),
        "query#2:heads": Group(2, _QUERIES, site="heads"),
        "query:head_dims": Group(  # pairs, each turned by its own angle
            2,
            "query.weight[-2] query.bias[-1] key.weight[-2] key.bias[-1] angles[-1]",
            site="head_dims",
            preserves=False,
            tap="none",
        ),
        "value:head_dims": Group(4, "value.weight[-2] value.bias[-1] out.weight[-1]", site="head_dims"),
        "out": Group(6, "out.weight[-2] out.bias[-1] head.weight[-1]", tap="any"),
    },
)
def rotary_complex() -> nn.Module:
    return ComplexRotary()


class Fourier(nn.Module):
    """A layer of a Fourier neural operator: low frequencies of each channel are mixed by complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.skip, self.out = nn.Conv1d(1, 4, 1), nn.Conv1d(4, 5, 1), nn.Conv1d(5, 1, 1)
        self.waves = nn.Parameter(torch.randn(4, 5, 3, 2) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x.mT)
        low = torch.fft.rfft(x)[..., :3]
        mixed = torch.einsum("bik,iok->bok", low, torch.view_as_complex(self.waves))
        return self.out(F.gelu(torch.fft.irfft(F.pad(mixed, (0, 2)), n=8) + self.skip(x)))


@case(
    "fourier_operator",
    sequence(8, 1),
    {
        "lift": Group(4, "lift.weight[-3] lift.bias[-1] waves[-4] skip.weight[-2]", tap="any"),
        "waves": Group(5, "waves[-3] skip.weight[-3] skip.bias[-1] out.weight[-2]", tap="any"),
    },
    excluded={"waves[-2]": "Fourier", "waves[-1]": "imaginary"},
    init="kaiming_uniform",
)
def fourier_operator() -> nn.Module:
    return Fourier()


class Siamese(nn.Module):
    """One encoder for both halves of a sequence; gates and values alternate; the angle between the two codes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.code, self.head = nn.Linear(4, 10), nn.Linear(5, 6), nn.Linear(6, 2)

    def encoded(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return self.code(hidden[..., ::2] * hidden[..., 1::2].sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, two = self.encoded(x[:, 0]), self.encoded(x[:, 1])
        return F.cosine_similarity(one, two), self.head((one - two).abs())


@case(
    "siamese_interleaved",
    sequence(2, 4),
    {
        "hidden": Group(5, "hidden.weight[-2] hidden.bias[-1] code.weight[-1]"),
        "code": Group(6, "code.weight[-2] code.bias[-1] head.weight[-1]", preserves=False, tap="any"),
    },
)
def siamese_interleaved() -> nn.Module:
    return Siamese()
