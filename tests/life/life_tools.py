"""Small networks that grow, and loops for them."""

from __future__ import annotations

import functools
import io
from typing import Any

import torch
from torch import nn

import pliant

METHOD = pliant.ContinualBackprop(replacement_rate=0.02, maturity_threshold=4)


class Words(nn.Module):
    """An embedding that grows, a body that may become wider, a head with a row for each word."""

    def __init__(self, vocabulary: int = 10, width: int = 12, body: str = "body") -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, 6)
        self.body_name = body
        setattr(self, body, nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU()))
        self.head = nn.Linear(8, vocabulary)

    def forward(self, ids):
        return self.head(getattr(self, self.body_name)(self.words(ids)))


@functools.cache
def units_of(**options: Any) -> pliant.UnitGraph:
    """Found once for all networks of a kind."""
    return pliant.find_units(Words(**options), (torch.arange(8),))


class Run:
    """A model in training under a handle."""

    def __init__(
        self, methods: Any = METHOD, *, seed: int = 0, optimizer: str = "adam", units=None, model=None, **options: Any
    ) -> None:
        torch.manual_seed(seed)
        attach = {key: options.pop(key) for key in ("where", "max_change", "measure_change") if key in options}
        self.model = Words(**options) if model is None else model
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
        more = {"momentum": 0.9} if optimizer == "sgd" else {}
        self.optimizer = kinds[optimizer](self.model.parameters(), lr=0.01, **more)
        if units is None:
            units = units_of(**options) if model is None else pliant.find_units(self.model, (torch.arange(8),))
        self.handle = pliant.attach(self.model, self.optimizer, methods, seed=seed, units=units, **attach)

    def train(self, start: int, stop: int) -> Run:
        """Some steps, each on its own batch of the first ten words."""
        for step in range(start, stop):
            generator = torch.Generator().manual_seed(step)
            ids, targets = torch.randint(0, 10, (2, 16), generator=generator)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(ids), targets).backward()
            self.optimizer.step()
        return self

    def saved(self) -> dict[str, Any]:
        """A checkpoint, through the file format."""
        file = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                    "pliant": self.handle.state_dict()}, file)  # fmt: skip
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, saved: dict[str, Any]) -> Run:
        """Plainly, into the same model."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.handle.load_state_dict(saved["pliant"])
        return self


def flat(tree: Any) -> list[tuple[str, Any]]:
    """Every leaf of nested state, with its path."""
    if isinstance(tree, dict):
        return [(f"{key}.{path}", leaf) for key, value in tree.items() for path, leaf in flat(value)]
    if isinstance(tree, list | tuple):
        return [(f"{index}.{path}", leaf) for index, value in enumerate(tree) for path, leaf in flat(value)]
    return [("", tree)]


def assert_same(one: Any, other: Any) -> None:
    """The same leaves with the same bits."""
    mine, theirs = flat(one), flat(other)
    assert [path for path, _ in mine] == [path for path, _ in theirs]
    for (path, a), (_, b) in zip(mine, theirs, strict=True):
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype, path
            assert torch.equal(a, b), path
        else:
            assert a == b, path
