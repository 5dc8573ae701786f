"""The models of the benchmarks, by name; ``my.module:Class`` names any other."""

from __future__ import annotations

from torch import nn

from pliant.bench.models.convnet import ConvNet
from pliant.bench.models.mlp import MLP
from pliant.bench.models.resnet import ResNet

__all__ = ["MLP", "MODELS", "ConvNet", "ResNet"]

MODELS: dict[str, type[nn.Module]] = {"mlp": MLP, "convnet": ConvNet, "resnet": ResNet}
"""Model classes by name; each is built as ``Class(num_inputs, num_outputs, **options)``."""
