"""The models of the benchmarks, by name; ``my.module:Class`` names any other."""

from __future__ import annotations

from torch import nn

from pliant.bench.models.actor_critic import ActorCritic
from pliant.bench.models.convnet import ConvNet
from pliant.bench.models.forecaster import Forecaster
from pliant.bench.models.mlp import MLP
from pliant.bench.models.resnet import ResNet
from pliant.bench.models.sequence import CharGRU, CharTransformer
from pliant.bench.models.tabular import EmbeddingMLP
from pliant.bench.models.vit import ViT

__all__ = [
    "MLP",
    "MODELS",
    "ActorCritic",
    "CharGRU",
    "CharTransformer",
    "ConvNet",
    "EmbeddingMLP",
    "Forecaster",
    "ResNet",
    "ViT",
]

MODELS: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "resnet": ResNet,
    "vit": ViT,
    "char_transformer": CharTransformer,
    "char_gru": CharGRU,
    "embedding_mlp": EmbeddingMLP,
    "forecaster": Forecaster,
    "actor_critic": ActorCritic,
}
"""Model classes by name; each is built as ``Class(num_inputs, num_outputs, **options)``."""
