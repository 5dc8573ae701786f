"""The zoo: recurrent layers and cells, forecasters, weight normalisation, recommenders."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from zoo_base import Group, case, images, sequence, tokens


def _cell(at: str, layer: str = "", *, consumers: str) -> str:
    """What one unit owns: rows of every gate, both biases, its recurrent column, and what the next layer reads."""
    return (
        f"{at}.weight_ih{layer}[-2] {at}.weight_hh{layer}[-2] {at}.weight_hh{layer}[-1]"
        f" {at}.bias_ih{layer}[-1] {at}.bias_hh{layer}[-1] {consumers}"
    )


# ---- layers ----
class Recurrent(nn.Module):
    """A recurrent layer and a head on its last step, on all steps, or on its last state."""

    def __init__(self, layer: nn.Module, width: int, read: str) -> None:
        super().__init__()
        self.layer, self.head, self.read = layer, nn.Linear(width, 2), read

    def forward(self, x: Tensor) -> Tensor:
        steps, state = self.layer(x)
        if self.read == "last":
            return self.head(steps[:, -1])
        if self.read == "mean":
            return self.head(steps.mean(1))
        return self.head(torch.cat([state[-2], state[-1]], dim=-1))


@case(
    "lstm",
    sequence(5, 3),
    {"layer": Group(4, _cell("layer", "_l0", consumers="head.weight[-1]"))},
    excluded={"layer.weight_ih_l0[-1]": "input", "head.weight[-2]": "output"},
)
def lstm() -> nn.Module:
    return Recurrent(nn.LSTM(3, 4, batch_first=True), 4, "mean")


@case(
    "lstm_two_layers",
    sequence(5, 3),
    {
        "layer.l0": Group(4, _cell("layer", "_l0", consumers="layer.weight_ih_l1[-1]"), tap="replay"),
        "layer.l1": Group(4, _cell("layer", "_l1", consumers="head.weight[-1]")),
    },
)
def lstm_two_layers() -> nn.Module:
    return Recurrent(nn.LSTM(3, 4, 2, batch_first=True, dropout=0.3), 4, "last")


@case(
    "gru_bidirectional",
    sequence(5, 3),
    {
        **{
            f"layer.l0{way}": Group(
                4,
                _cell("layer", f"_l0{way}", consumers="layer.weight_ih_l1[-1] layer.weight_ih_l1_reverse[-1]"),
                tap="replay",
            )
            for way in ("", "_reverse")
        },
        **{
            f"layer.l1{way}": Group(4, _cell("layer", f"_l1{way}", consumers="head.weight[-1]"))
            for way in ("", "_reverse")
        },
    },
)
def gru_bidirectional() -> nn.Module:
    return Recurrent(nn.GRU(3, 4, 2, batch_first=True, bidirectional=True, dropout=0.1), 8, "state")


@case(
    "rnn_time_first",
    sequence(5, 3),
    {
        "layer.l0": Group(
            6,
            "layer.weight_ih_l0[-2] layer.weight_hh_l0[-2] layer.weight_hh_l0[-1] layer.weight_ih_l1[-1]"
            " head.weight[-1]",
            tap="replay",
        ),
        "layer.l1": Group(6, "layer.weight_ih_l1[-2] layer.weight_hh_l1[-2] layer.weight_hh_l1[-1] head.weight[-1]"),
    },
)
def rnn_time_first() -> nn.Module:
    """Batch and time exchanged, which is nothing to the units; the head reads the last state of both layers."""
    return Recurrent(nn.RNN(3, 6, 2, nonlinearity="relu", bias=False), 12, "state")


class Projected(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on a CPU, PyTorch says that it takes its slower implementation
            return super().forward(x)


@case(
    "lstm_projected",
    sequence(5, 3),
    {
        # inside the cell; no hook and no operation shows o * tanh(c)
        "layer": Group(
            5,
            "layer.weight_ih_l0[-2] layer.weight_hh_l0[-2] layer.bias_ih_l0[-1] layer.bias_hh_l0[-1]"
            " layer.weight_hr_l0[-1]",
            tap="none",
        ),
        "layer.weight_hr_l0": Group(3, "layer.weight_hr_l0[-2] layer.weight_hh_l0[-1] head.weight[-1]"),
    },
)
def lstm_projected() -> nn.Module:
    return Projected(nn.LSTM(3, 5, batch_first=True, proj_size=3), 3, "mean")


# ---- cells in a loop ----
class CellLoop(nn.Module):
    """A stack of cells, step by step, over embedded tokens; the first starts from a learned state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.start = nn.Parameter(torch.randn(1, 4) * 0.1)
        self.lower, self.upper, self.head = nn.GRUCell(3, 4), nn.LSTMCell(4, 5), nn.Linear(5, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        hidden, upper, outputs = self.start.expand(len(tokens), -1), None, []
        for step in range(x.shape[1]):
            hidden = self.lower(x[:, step], hidden)
            upper = self.upper(hidden, upper)
            outputs.append(upper[0])
        return self.head(torch.stack(outputs, dim=1))


@case(
    "cell_loop",
    tokens(3, 7),
    {
        "embed": Group(3, "embed.weight[-1] lower.weight_ih[-1]", tap="any"),
        "lower": Group(4, _cell("lower", consumers="start[-1] upper.weight_ih[-1]")),
        "upper": Group(5, _cell("upper", consumers="head.weight[-1]")),
    },
    excluded={"embed.weight[-2]": "data"},
    init={"start": "zeros"},
)
def cell_loop() -> nn.Module:
    return CellLoop()


class ConvolutionalLSTM(nn.Module):
    """Gates are blocks of channels; the state starts at zeros made inside the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(2 + 4, 4 * 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(len(x), 4, *x.shape[-2:])
        for step in (0, 2):
            inside, forget, out, new = self.gates(torch.cat([x[:, step : step + 2], hidden], dim=1)).chunk(4, dim=1)
            cell = forget.sigmoid() * cell + inside.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
        return self.head(hidden)


@case(
    "convolutional_lstm",
    images(4, 3),
    {"gates": Group(4, "gates.weight[-4] gates.weight[-3] gates.bias[-1] head.weight[-3]", tap="any")},
    excluded={"gates.weight[-3]": "input", "gates.weight[-1]": "kernel"},
)
def convolutional_lstm() -> nn.Module:
    return ConvolutionalLSTM()


class EncoderDecoder(nn.Module):
    """The encoder's last state starts the decoder: their units are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(3, 4, batch_first=True), nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        steps, _ = self.decoder(x[:, -2:], state)
        return self.head(steps)


@case(
    "lstm_encoder_decoder",
    sequence(5, 3),
    {
        "encoder": Group(
            4, _cell("encoder", "_l0", consumers="") + _cell("decoder", "_l0", consumers="head.weight[-1]"), tap="any"
        )
    },
)
def lstm_encoder_decoder() -> nn.Module:
    return EncoderDecoder()


# ---- forecasting ----
class Forecaster(nn.Module):
    """Series are normalised over time, encoded, projected to the horizon, and scaled back."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        self.conv, self.norm = nn.Conv1d(3, 5, 3, padding=1), nn.BatchNorm1d(5)
        self.encoder, self.head = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True).detach()
        deviation = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5).detach()
        x = (x - mean) / deviation * self.scale + self.shift
        x = F.gelu(self.norm(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        steps, _ = self.encoder(x)
        y = self.head(steps[:, -1]).unflatten(-1, (2, 3))
        return (y - self.shift) / self.scale * deviation + mean


@case(
    "forecaster",
    sequence(6, 3),
    {
        "conv": Group(
            5,
            "conv.weight[-3] conv.bias[-1] norm.weight[-1] norm.bias[-1] norm.running_mean[-1] norm.running_var[-1]"
            " encoder.weight_ih_l0[-1]",
        ),
        "encoder": Group(4, _cell("encoder", "_l0", consumers="head.weight[-1]")),
    },
    excluded={"scale[-1]": "input", "conv.weight[-1]": "kernel"},
    init={"scale": "ones", "shift": "zeros"},
)
def forecaster() -> nn.Module:
    return Forecaster()


class CausalBlock(nn.Module):
    """Weight-normalised dilated convolutions, padded on the left only, around a residual stream."""

    def __init__(self, width: int, inner: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = parametrizations.weight_norm(nn.Conv1d(width, inner, 2, dilation=dilation))
        self.conv2 = parametrizations.weight_norm(nn.Conv1d(inner, width, 2, dilation=dilation))
        self.pad, self.drop = dilation, nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(F.relu(self.conv1(F.pad(x, (self.pad, 0)))))
        return F.relu(x + self.conv2(F.pad(y, (self.pad, 0))))


def _weight_norm(at: str, row: bool) -> str:
    at = f"{at}.parametrizations.weight.original"
    return f"{at}0[-3] {at}1[-3]" if row else f"{at}1[-2]"


@case(
    "tcn_weight_norm",
    sequence(5, 3),
    {
        # a norm over a convolution's inputs: zeroing one of them makes the others longer
        "0:residual": Group(
            4,
            f"0.weight[-3] 0.bias[-1] {_weight_norm('1.conv1', False)} {_weight_norm('1.conv2', True)} 1.conv2.bias[-1]"
            f" {_weight_norm('2.conv1', False)} {_weight_norm('2.conv2', True)} 2.conv2.bias[-1]"
            " 5.parametrizations.weight.original1[-1]",
            site="residual",
            preserves=False,
            tap="any",
        ),
        **{
            f"{block}.conv1": Group(
                5,
                f"{_weight_norm(f'{block}.conv1', True)} {block}.conv1.bias[-1]"
                f" {_weight_norm(f'{block}.conv2', False)}",
                preserves=False,
            )
            for block in (1, 2)
        },
        "5": Group(
            3,
            "5.parametrizations.weight.original0[-2] 5.parametrizations.weight.original1[-2] 5.bias[-1] 7.weight[-1]",
        ),
    },
)
def tcn_weight_norm() -> nn.Module:
    return TimeLast(
        nn.Conv1d(3, 4, 1), CausalBlock(4, 5, 1), CausalBlock(4, 5, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2),
    )  # fmt: skip


class TimeLast(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2))


# ---- recommenders ----
class DotRecommender(nn.Module):
    """Counts through a tower, categories through bags; all pairs of their vectors are multiplied (DLRM)."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(9, 4, mode=mode) for mode in ("sum", "mean"))
        self.dense = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(4 + 3, 5), nn.ReLU(), nn.Linear(5, 1))
        self.register_buffer("pairs", torch.tril_indices(3, 3, -1))

    def forward(self, x: Tensor) -> Tensor:
        dense = self.dense(torch.log1p(x[:, :3].to(self.bags[0].weight.dtype)))
        offsets = torch.arange(0, 2 * len(x), 2)
        slots = zip(self.bags, (3, 5), strict=True)
        vectors = [dense, *(bag(x[:, at : at + 2].reshape(-1), offsets) for bag, at in slots)]
        stacked = torch.stack(vectors, dim=1)
        dots = torch.bmm(stacked, stacked.mT)[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.top(torch.cat([dense, dots], dim=1)))


@case(
    "recommender_dot",
    tokens(7, 9),
    {
        "dense.0": Group(6, "dense.0.weight[-2] dense.0.bias[-1] dense.2.weight[-1]"),
        # one coordinate of every vector: products pair them up, and a layer reads it besides
        "bags.0": Group(
            4,
            "bags.0.weight[-1] bags.1.weight[-1] dense.2.weight[-2] dense.2.bias[-1] top.0.weight[-1]",
            preserves=False,
            tap="any",
        ),
        "top.0": Group(5, "top.0.weight[-2] top.0.bias[-1] top.2.weight[-1]"),
    },
    excluded={"bags.0.weight[-2]": "data", "top.2.weight[-2]": "output"},
)
def recommender_dot() -> nn.Module:
    return DotRecommender()


class ConcatRecommender(nn.Module):
    """Categories looked up and joined with the counts (wide and deep)."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.items = nn.Embedding(9, 4), nn.EmbeddingBag(9, 5, mode="max")
        self.deep, self.out = nn.Linear(4 + 5 + 2, 6), nn.Linear(6, 1)
        self.wide = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        counts = x[:, :2].to(self.user.weight.dtype)
        joined = torch.cat([self.user(x[:, 2]), self.items(x[:, 3:]), counts], dim=1)
        return torch.sigmoid(self.out(torch.relu(self.deep(joined))) + self.wide(counts))


@case(
    "recommender_concat",
    tokens(6, 9),
    {
        "user": Group(4, "user.weight[-1] deep.weight[-1]", tap="hook"),
        "items": Group(5, "items.weight[-1] deep.weight[-1]", tap="hook"),
        "deep": Group(6, "deep.weight[-2] deep.bias[-1] out.weight[-1]"),
    },
    excluded={"user.weight[-2]": "data", "items.weight[-2]": "data", "deep.weight[-1]": "input"},
)
def recommender_concat() -> nn.Module:
    return ConcatRecommender()
