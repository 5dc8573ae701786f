"""What has been published about the methods of the leaderboard, as expectations; fixed before a reported seed was run.

Each claim is about other streams, networks and lengths than ours, so that an expectation which is not met here refutes
nobody: it says that the claim does not carry over to these small streams at equal budgets. Where a source shows several
methods, its order of them is taken; where it shows curves, their direction.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ANY_CHANGE", "CLAIMS", "CURVES", "INPUTS", "LABELS", "Claim", "Curve"]

INPUTS = ("permuted_digits", "input_permuted")
"""Streams whose inputs are permuted."""
LABELS = ("random_label_digits", "label_permuted")
"""Streams whose labels change."""
ANY_CHANGE = (*LABELS, *INPUTS, "slowly_changing_regression")
"""Streams on which something changes."""


@dataclass(frozen=True)
class Claim:
    """One expectation.

    Attributes:
        text: What was published, in a sentence.
        source: Where.
        way: The way of training that it is about.
        rule: ``"beats"``: better over the last ten tasks than ``other``, on the same seeds; ``"falls"``: its last ten
            tasks are worse than its first ten; ``"holds"``: they are not worse; ``"fewer dormant"``: fewer dormant
            units at the end than ``other``.
        other: What it is held against.
        streams: Where we look.
    """

    text: str
    source: str
    way: str
    rule: str
    other: str = ""
    streams: tuple[str, ...] = ANY_CHANGE


_NATURE = "Dohare et al. 2024"
_KUMAR = "Kumar et al. 2023"
_UPGD = "Elsayed & Mahmood 2024"
_FARIAS = "Farias & Jozefiak 2024"

CLAIMS: tuple[Claim, ...] = (
    Claim("plain training loses its plasticity on permuted inputs", _NATURE, "none", "falls", streams=INPUTS),
    Claim(
        "its error grows in slowly changing regression",
        _NATURE,
        "none",
        "falls",
        streams=("slowly_changing_regression",),
    ),
    Claim("plain training loses its plasticity on random labels", _KUMAR, "none", "falls", streams=LABELS[:1]),
    Claim("plain training loses its plasticity on permuted labels", _UPGD, "none", "falls", streams=LABELS[1:]),
    Claim("continual backprop does not lose it", _NATURE, "continual_backprop", "holds", streams=INPUTS),
    Claim("continual backprop is ahead of plain training", _NATURE, "continual_backprop", "beats", "none"),
    Claim("continual backprop is ahead of L2", _NATURE, "continual_backprop", "beats", "l2", INPUTS),
    Claim(
        "continual backprop keeps almost no dormant units",
        _NATURE,
        "continual_backprop",
        "fewer dormant",
        "none",
        INPUTS,
    ),
    Claim("L2 is ahead of plain training on permuted inputs", _NATURE, "l2", "beats", "none", INPUTS),
    Claim(
        "shrink and perturb is ahead of L2 on permuted inputs", _NATURE, "shrink_and_perturb", "beats", "l2", INPUTS
    ),
    Claim("Adam is behind plain SGD on permuted inputs at the end", _NATURE, "none", "beats", "adam", INPUTS),
    Claim(
        "equal betas lose less than Adam's defaults (in reinforcement learning)",
        _NATURE,
        "adam_equal_betas",
        "beats",
        "adam",
    ),
    Claim("L2 init is ahead of plain training", _KUMAR, "l2_init", "beats", "none", (*LABELS, *INPUTS)),
    Claim("L2 init is ahead of L2", _KUMAR, "l2_init", "beats", "l2", (*LABELS, *INPUTS)),
    Claim("L2 init is ahead of continual backprop", _KUMAR, "l2_init", "beats", "continual_backprop", LABELS[:1]),
    Claim("ReDo is ahead of plain training", "Sokar et al. 2023", "redo", "beats", "none"),
    Claim("ReDo leaves fewer dormant units", "Sokar et al. 2023", "redo", "fewer dormant", "none"),
    Claim("ReGraMa is ahead of ReDo", "Liu et al. 2025", "regrama", "beats", "redo"),
    Claim(
        "self-normalized reset is ahead of continual backprop", _FARIAS, "self_normalized_reset", "beats",
        "continual_backprop", (*LABELS, *INPUTS),
    ),
    Claim(
        "self-normalized reset is ahead of ReDo", _FARIAS, "self_normalized_reset", "beats", "redo", (*LABELS, *INPUTS)
    ),
    Claim("UPGD is ahead of plain SGD", _UPGD, "upgd", "beats", "none", ("input_permuted", "label_permuted")),
    Claim(
        "UPGD is ahead of shrink and perturb", _UPGD, "upgd", "beats", "shrink_and_perturb",
        ("input_permuted", "label_permuted"),
    ),
    Claim(
        "weight clipping is ahead of plain SGD", "Elsayed et al. 2024", "weight_clipping", "beats", "none",
        ("input_permuted", "label_permuted"),
    ),
    Claim(
        "spectral regularisation is ahead of L2", "Lewandowski et al. 2024", "spectral_regularisation", "beats", "l2",
        (*LABELS, *INPUTS),
    ),
    Claim(
        "spectral regularisation is ahead of L2 init", "Lewandowski et al. 2024", "spectral_regularisation", "beats",
        "l2_init", (*LABELS, *INPUTS),
    ),
    Claim("layer normalisation helps", "Lyle et al. 2023", "layer_norm", "beats", "none", (*LABELS, *INPUTS)),
    Claim("CReLU helps", "Abbas et al. 2023", "crelu", "beats", "none"),
    Claim("resetting the last layers helps (in reinforcement learning)", "Nikishin et al. 2022", "layer_reset", "beats",
          "none"),
    Claim("shrink and perturb helps", "Ash & Adams 2020", "shrink_and_perturb", "beats", "none"),
    Claim("hare and tortoise helps", "Lee et al. 2024", "hare_and_tortoise", "beats", "none"),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A published curve, to be shown beside ours.

    Attributes:
        published: What was run, and where it is shown.
        shape: Its first value, its best and its last.
        way: The way of training.
        streams: Our streams of the same kind.
    """

    published: str
    shape: str
    way: str
    streams: tuple[str, ...]


_MNIST = "online permuted MNIST, 3x2000, 800 tasks, step size 0.003, online accuracy (Dohare et al. 2024)"
_BITS = "slowly changing regression with all bits drawn anew, step size 0.003, squared error (Dohare et al. 2024, code)"
_IMAGENET = "Continual ImageNet, 2,000 tasks, step size 0.01, test accuracy (Dohare et al. 2024)"

CURVES: tuple[Curve, ...] = (
    Curve(_MNIST, "94.1, 95.2, 93.7", "none", INPUTS),
    Curve(_MNIST, "–, –, about 95, flat", "continual_backprop", INPUTS),
    Curve(_MNIST, "–, –, about 95, flat", "shrink_and_perturb", INPUTS),
    Curve(_MNIST, "–, –, about 94", "l2", INPUTS),
    Curve(_MNIST, "–, –, about 91.3", "adam", INPUTS),
    Curve(_BITS, "0.71, 0.655, 1.07", "none", ("slowly_changing_regression",)),
    Curve(_IMAGENET, "84.3, 85.2, 74.0", "none", ("continual_imagenet",)),
    Curve(_IMAGENET, "84.5, 88.9, 88.8", "continual_backprop", ("continual_imagenet",)),
    Curve(_IMAGENET, "85.2, 88.1, 88.1", "l2", ("continual_imagenet",)),
    Curve(_IMAGENET, "84.3, 88.0, 88.0", "shrink_and_perturb", ("continual_imagenet",)),
)
"""Read from the authors' figures, or as the paper says it. Added while the runs went on: they are no expectations."""
