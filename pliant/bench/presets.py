"""Named settings of the streams: the published ones as published, and ones for the machine at hand.

``paper`` is the published problem, with the network and the step size of its plain learner; further published
variants have names of their own. ``mini`` runs on a CPU in minutes, and needs no files unless the stream is made of
them.
"""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS"]

_CIFAR_NET = {"name": "convnet", "channels": [16, 16], "kernels": [5, 5], "hidden": [100, 100]}
_DIGIT_NET = {"name": "convnet", "channels": [8, 16], "kernels": [3, 2], "hidden": [32], "image": [1, 8, 8]}
_MLP = {"name": "mlp", "hidden": [64, 64]}
_WARMED_UP = {"name": "constant", "warmup": 0.1}


def _sgd(lr: float, **options: Any) -> dict[str, Any]:
    return {"name": "sgd", "lr": lr, **options}


def _adam(lr: float) -> dict[str, Any]:
    return {"name": "adam", "lr": lr}


def _ppo(num_tasks: int) -> dict[str, Any]:
    """PPO of Dohare et al. (2024): one instance, 160 updates for each 2048 steps; standard Adam, and equal betas."""
    net = {"name": "actor_critic", "hidden": [256, 256]}
    small = {"name": "actor_critic", "hidden": [64, 64]}
    found = {
        "paper": {"stream": {}, "optimizer": _adam(1e-4), "model": net},
        "equal_betas": {"stream": {}, "optimizer": {**_adam(1e-4), "betas": [0.99, 0.99]}, "model": net},
        # A few minutes of the same robot: too short for it to walk.
        "mini": {"stream": {"phase_steps": 10240, "parts": 1}, "optimizer": _adam(3e-4), "model": small},
    }
    lengths = {"mini": 10}
    return {name: {**settings, "num_tasks": lengths.get(name, num_tasks)} for name, settings in found.items()}


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
    "input_permuted": {
        # Elsayed & Mahmood (2024): 1,000,000 examples; the grid of plain SGD is 1e-2 to 1e-5.
        "paper": {
            "stream": {"dataset": "mnist", "scaling": "half", "num_examples": 5000},
            "optimizer": _sgd(0.01),
            "model": {"name": "mlp", "hidden": [300, 150]},
            "num_tasks": 200,
        },
        # Kumar et al. (2023): permuted MNIST in batches.
        "kumar": {
            "stream": {
                "dataset": "mnist",
                "scaling": "half",
                "num_examples": 10000,
                "same_images": True,
                "batch_size": 16,
                "num_test": 10000,
            },
            "optimizer": _sgd(0.01),
            "model": {"name": "mlp", "hidden": [100, 100]},
            "num_tasks": 500,
        },
        "mini": {"stream": {"num_examples": 1000}, "optimizer": _sgd(0.03), "model": _MLP, "num_tasks": 100},
    },
    "slowly_changing_regression": {
        "paper": {
            "stream": {"change": "one", "task_length": 10000, "threshold": "code"},
            "optimizer": _sgd(0.01),
            "model": {"name": "mlp", "hidden": [5]},
            "num_tasks": 300,
        },
        # The variant of the figure in the authors' repository.
        "redraw": {
            "stream": {"change": "all", "task_length": 10000, "threshold": "code"},
            "optimizer": _sgd(0.01),
            "model": {"name": "mlp", "hidden": [5]},
            "num_tasks": 100,
        },
        "mini": {
            "stream": {"change": "one", "task_length": 2000},
            "optimizer": _sgd(0.01),
            "model": {"name": "mlp", "hidden": [5]},
            "num_tasks": 100,
        },
    },
    "continual_imagenet": {
        "paper": {
            "stream": {
                "dataset": "imagenet32",
                "num_all": 1000,
                "num_train": 600,
                "num_test": 100,
                "image_size": 32,
                "num_epochs": 250,
                "batch_size": 100,
                "reshuffle": False,
            },
            "optimizer": _sgd(0.01, momentum=0.9),
            "model": {"name": "convnet"},
            "num_tasks": 5000,
        },
        "kumar": {
            "stream": {
                "dataset": "imagenet32",
                "num_all": 1000,
                "num_train": 600,
                "num_test": 100,
                "image_size": 32,
                "num_epochs": 10,
                "batch_size": 100,
                "reset_head": False,
            },
            "optimizer": _sgd(0.01),
            "model": _CIFAR_NET,
            "num_tasks": 500,
        },
        "mini": {
            "stream": {"num_epochs": 10, "batch_size": 20},
            "optimizer": _sgd(0.01, momentum=0.9),
            "model": _DIGIT_NET,
            "num_tasks": 100,
        },
    },
    "class_incremental": {
        "paper": {
            "stream": {
                "dataset": "cifar100",
                "scaling": "channel",
                "flat": False,
                "classes_per_task": 5,
                "num_train_per_class": 450,
                "num_valid": 50,
                "num_epochs": 200,
                "batch_size": 90,
                "augment": True,
            },
            "optimizer": _sgd(0.1, momentum=0.9, weight_decay=5e-4),
            "model": {"name": "resnet"},
            "schedule": {"name": "step", "milestones": [0.3, 0.6, 0.8], "decay": 0.2},
            "num_tasks": 20,
        },
        "mini": {
            "stream": {"classes_per_task": 2, "num_epochs": 20},
            "optimizer": _sgd(0.05, momentum=0.9, weight_decay=5e-4),
            "model": _MLP,
            "num_tasks": 5,
        },
    },
    "random_label_images": {
        "paper": {
            "stream": {"dataset": "mnist", "scaling": "half"},
            "optimizer": _sgd(0.01),
            "model": {"name": "mlp", "hidden": [100, 100]},
            "num_tasks": 50,
        },
        "paper_cifar": {
            "stream": {"dataset": "cifar10", "scaling": "channel", "flat": False},
            "optimizer": _sgd(0.01),
            "model": _CIFAR_NET,
            "num_tasks": 50,
        },
        "mini": {
            "stream": {"num_examples": 200, "num_epochs": 40, "batch_size": 10},
            "optimizer": _sgd(0.03),
            "model": _MLP,
            "num_tasks": 50,
        },
    },
    "label_permuted": {
        "paper": {
            "stream": {"dataset": "emnist", "scaling": "half", "num_examples": 2500},
            "optimizer": _sgd(0.01),
            "model": {"name": "mlp", "hidden": [300, 150]},
            "num_tasks": 400,
        },
        "paper_cifar": {
            "stream": {"dataset": "cifar10", "scaling": "half", "flat": False, "num_examples": 2500},
            "optimizer": _sgd(0.01),
            "model": {"name": "convnet", "channels": [6, 16], "kernels": [5, 5], "hidden": [120, 84]},
            "num_tasks": 400,
        },
        "mini": {"stream": {"num_examples": 500}, "optimizer": _sgd(0.03), "model": _MLP, "num_tasks": 100},
    },
    "five_plus_one": {
        "paper": {
            "stream": {"dataset": "cifar100", "scaling": "channel", "flat": False},
            "optimizer": _sgd(0.01),
            "model": _CIFAR_NET,
            "num_tasks": 31,
        },
        "mini": {
            "stream": {"per_class": 80, "reuse": True},
            "optimizer": _sgd(0.05),
            "model": _MLP,
            "num_tasks": 40,
        },
    },
    "data_growth": {
        "paper": {
            "stream": {
                "dataset": "cifar10",
                "scaling": "channel",
                "flat": False,
                "fractions": [0.1, 1.0],
                "num_epochs": [1000, 100],
                "batch_size": 256,
                "num_test": 10000,
            },
            "optimizer": _adam(0.001),
            "model": {"name": "resnet"},
            "schedule": _WARMED_UP,
            "num_tasks": 2,
        },
        "growth": {
            "stream": {
                "dataset": "cifar10",
                "scaling": "channel",
                "flat": False,
                "fractions": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
                "num_epochs": [100],
                "batch_size": 256,
                "num_test": 10000,
            },
            "optimizer": _adam(0.001),
            "model": {"name": "resnet"},
            "schedule": _WARMED_UP,
            "num_tasks": 10,
        },
        "half": {
            "stream": {
                "dataset": "cifar10",
                "scaling": "half",
                "flat": False,
                "fractions": [0.5, 1.0],
                "num_epochs": [350, 350],
                "batch_size": 128,
                "num_test": 10000,
            },
            "optimizer": _sgd(0.001),
            "model": {"name": "resnet"},
            "num_tasks": 2,
        },
        "mini": {
            "stream": {"fractions": [0.1, 1.0], "num_epochs": [300, 30], "num_test": 597},
            "optimizer": _adam(0.001),
            "model": _MLP,
            "num_tasks": 2,
        },
        "mini_growth": {
            "stream": {
                "fractions": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
                "num_epochs": [30],
                "num_test": 597,
            },
            "optimizer": _adam(0.001),
            "model": _MLP,
            "num_tasks": 10,
        },
    },
    "continual_tiny_imagenet": {
        "paper": {
            "stream": {
                "dataset": "tiny_imagenet",
                "num_all": 200,
                "num_train": 500,
                "num_test": 50,
                "image_size": 64,
                "scaling": "channel",
                "classes_per_task": 10,
                "num_epochs": 100,
                "batch_size": 256,
            },
            "optimizer": _adam(0.001),
            "model": {"name": "resnet", "image": [3, 64, 64]},
            "schedule": _WARMED_UP,
            "num_tasks": 20,
        },
        "mini": {"stream": {}, "optimizer": _adam(0.001), "model": _DIGIT_NET, "num_tasks": 5},
    },
    "label_noise": {
        "paper": {
            "stream": {
                "dataset": "cifar10",
                "scaling": "channel",
                "flat": False,
                "num_epochs": 100,
                "batch_size": 256,
                "num_test": 10000,
                "augment": True,
            },
            "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.001},
            "model": {"name": "resnet"},
            "schedule": _WARMED_UP,
            "num_tasks": 10,
        },
        "mini": {
            "stream": {"num_epochs": 20, "num_test": 597},
            "optimizer": _adam(0.001),
            "model": _MLP,
            "num_tasks": 10,
        },
    },
    "recurring": {
        "mini": {"stream": {"num_test": 200}, "optimizer": _sgd(0.1), "model": _MLP, "num_tasks": 50},
    },
    "smooth_drift": {
        "mini": {"stream": {"num_test": 200}, "optimizer": _sgd(0.1), "model": _MLP, "num_tasks": 80},
    },
    "day_and_weather": {
        "mini": {"stream": {"num_test": 200}, "optimizer": _sgd(0.1), "model": _MLP, "num_tasks": 80},
        # On real photographs; a day of sixteen tasks.
        "cifar10": {
            "stream": {
                "dataset": "cifar10",
                "scaling": "channel",
                "flat": False,
                "day_length": 16,
                "num_examples": 5000,
                "num_epochs": 2,
                "batch_size": 32,
                "num_test": 1000,
            },
            "optimizer": _sgd(0.01, momentum=0.9),
            "model": _CIFAR_NET,
            "num_tasks": 160,
        },
    },
    "regime_switching": {
        "mini": {
            "stream": {"num_test": 128},
            "optimizer": _adam(0.003),
            "model": {"name": "forecaster"},
            "num_tasks": 60,
        },
        # The same series for networks of linear layers, whose seeds are trained as one.
        "mini_mlp": {
            "stream": {"num_test": 128, "flat": True},
            "optimizer": _adam(0.003),
            "model": _MLP,
            "num_tasks": 60,
        },
    },
    "click_through": {
        "mini": {
            "stream": {"num_test": 512},
            "optimizer": _adam(0.003),
            "model": {"name": "embedding_mlp"},
            "num_tasks": 80,
        },
    },
    "character_drift": {
        "mini": {
            "stream": {"num_test": 32},
            "optimizer": _adam(0.003),
            "model": {"name": "char_gru"},
            "num_tasks": 40,
        },
        # The sizes of permuted Shakespeare (Farias & Jozefiak 2024), with characters for tokens; downloads the text.
        "shakespeare": {
            "stream": {
                "text": "files",
                "change": "words",
                "context": 128,
                "num_examples": 256,
                "num_epochs": 100,
                "batch_size": 8,
            },
            "optimizer": _adam(0.001),
            "model": {
                "name": "char_transformer",
                "width": 32,
                "heads": 2,
                "hidden": 256,
                "context": 128,
            },
            "num_tasks": 500,
        },
    },
    "changing_control": {
        # Found on tuning seeds by benchmarks/rl/search.py: plain PPO learns the first changes as well as a fresh agent,
        # and loses more than half of that within a hundred. One seed takes 24,000 updates and a million steps.
        "mini": {
            "stream": {
                "changes": ["sensors"],
                "size": 5,
                "num_envs": 32,
                "rollout_length": 8,
                "phase_steps": 1024,
                "num_epochs": 6,
                "batch_size": 256,
                "entropy_weight": 0.05,
            },
            "optimizer": {"name": "adam", "lr": 0.01, "fused": True},
            "model": {"name": "actor_critic", "hidden": [32, 32]},
            "num_tasks": 1000,
        },
    },
    "slippery_ant": _ppo(100),
    "ant": _ppo(500),
    "hopper": _ppo(500),
    "walker": _ppo(500),
}
"""Stream name to preset name to settings: stream options, optimizer, model, num_tasks, and maybe a schedule."""
