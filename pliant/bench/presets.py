"""Named settings of the streams: the published ones as published, and ones for the machine at hand."""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS"]

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "random_label_digits": {
        # Small tasks that are learnt to the end, many steps each, so that the collapse shows within 40 tasks at every
        # step size at which plain training learns well (0.015 to 0.1). A smaller step collapses later: at 0.01 it has
        # begun to fall by task 50. One seed takes 25,600 steps of batch 8.
        "demo": {
            "stream": {"num_examples": 128, "num_epochs": 40, "batch_size": 8},
            "optimizer": {"name": "sgd", "lr": 0.03},
            "model": {"name": "mlp", "hidden": [100, 100, 100]},
            "num_tasks": 40,
        },
    },
    "permuted_digits": {
        "demo": {
            "stream": {"num_examples": 512, "num_test": 597, "num_epochs": 5, "batch_size": 16},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "model": {"name": "mlp", "hidden": [100, 100, 100]},
            "num_tasks": 50,
        },
    },
    "stationary_digits": {
        "demo": {
            "stream": {"num_examples": 512, "num_test": 597, "num_epochs": 5, "batch_size": 16},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "model": {"name": "mlp", "hidden": [100, 100, 100]},
            "num_tasks": 20,
        },
    },
    "permuted_mnist": {
        # Dohare et al. (2024), Nature 632, 768-774: the network, the length and the step size of the figure.
        "paper": {
            "stream": {"num_examples": 60000, "num_epochs": 1, "batch_size": 1},
            "optimizer": {"name": "sgd", "lr": 0.003},
            "model": {"name": "mlp", "hidden": [2000, 2000, 2000]},
            "num_tasks": 800,
        },
        # The same problem with the paper's narrow network and its fastest rate of change.
        "mini": {
            "stream": {"num_examples": 10000, "num_epochs": 1, "batch_size": 1},
            "optimizer": {"name": "sgd", "lr": 0.003},
            "model": {"name": "mlp", "hidden": [100, 100, 100]},
            "num_tasks": 100,
        },
    },
}
"""Stream name to preset name to settings: stream options, optimizer, model, num_tasks."""
