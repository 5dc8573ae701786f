"""Every architecture with every method that changes the model: it keeps its contracts, or it is refused and says why.

The fast suite meets a fifth of the pairs, and of Hugging Face none, of which ``test_contracts_surgery.py`` and
``test_contracts_injection.py`` have one; ``PLIANT_FULL_MATRIX=1`` runs all.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import zoo
from contract_tools import FULL, OPTIMIZERS, Run, assert_same_bits, differ, num_hooks
from torch.utils import _pytree as pytree
from zoo import NAMES, ZOO

from pliant import PliantError
from pliant.interventions import AdaptiveNormalization, InsertDropout, InsertNormalization, PlasticityInjection

METHODS: dict[str, Any] = {
    "norm": InsertNormalization(gate=True),
    "dropout": InsertDropout(0.5),
    "adaptive": AdaptiveNormalization(rate=0.5, every=2, dormant_above=0.0, dormant_below=0.0, tau=1.0),
    "injection": PlasticityInjection(at=0),
}

HAS_NORM, RAW, TIED = "has a norm behind it already", "none of its weights", "used by other code"
SHARED_OUT, NO_LINEAR = "does not go into an activation alone", "no linear layer"
READ = "other code reads the 'weight'"
FUSED, SHARES = "the fused inference path", "shares a parameter with"
NO_NORM: dict[str, str] = {
    **dict.fromkeys(("conv_groupnorm", "resnet_basic", "resnet_preactivation", "resnet_bottleneck"), HAS_NORM),
    **dict.fromkeys(("mlp_raw", "parameter_slices", "parameter_views", "parameter_products"), RAW),
    **dict.fromkeys(("noisy_network", "tcn_weight_norm"), RAW),
    **dict.fromkeys(("tied_autoencoder", "tied_autoencoder_deep"), TIED),
    **dict.fromkeys(("lstm", "lstm_two_layers", "lstm_projected", "lstm_encoder_decoder"), RAW),
    **dict.fromkeys(("gru_bidirectional", "rnn_time_first", "cell_loop"), RAW),
    "convolutional_lstm": "but also into 'chunk'",
    "forecaster": HAS_NORM,
    **dict.fromkeys(("transformer_post_norm", "transformer_norm_first"), FUSED),
    **dict.fromkeys(("fourier_operator", "siamese_interleaved", "graph_convolution", "rotary_complex"), SHARED_OUT),
    "hf_mixtral": SHARED_OUT,
}
REFUSED: dict[str, dict[str, str]] = {
    "norm": NO_NORM,
    "adaptive": NO_NORM,
    "dropout": {
        **dict.fromkeys(("mlp_raw", "parameter_products", "cell_loop"), RAW),
        **dict.fromkeys(("tied_autoencoder", "tied_autoencoder_deep"), TIED),
        **dict.fromkeys(("transformer_post_norm", "transformer_norm_first"), FUSED),
        "hf_t5": "has dropout before it already",
        **dict.fromkeys(("rotary_complex", "hf_mixtral"), "which is no activation"),
    },
    "injection": {
        **dict.fromkeys(("mlp_raw", "unet", "weight_standardised", "channel_shuffle"), NO_LINEAR),
        **dict.fromkeys(("tied_language_model", "hf_gpt2", "hf_gpt2_eager", "hf_bert_mlm", "hf_t5"), SHARES),
        "hf_whisper": SHARES,
        **dict.fromkeys(("convolutional_lstm", "fourier_operator"), NO_LINEAR),
        **dict.fromkeys(("tied_autoencoder", "tied_autoencoder_deep", "parameter_products"), READ),
    },
}
"""Method to architecture to words of the reason; every other pair works."""


def is_met(i: int, j: int, name: str) -> bool:
    """Whether the fast suite has the pair of the i-th method and the j-th architecture."""
    return not name.startswith("hf_") and (i + j) % 5 == 0


PAIRS = [(m, name) for i, m in enumerate(METHODS) for j, name in enumerate(NAMES) if FULL or is_met(i, j, name)]
WORKING = [pair for pair in PAIRS if pair[1] not in REFUSED[pair[0]]]


def optimizer_of(name: str) -> str:
    return list(OPTIMIZERS)[(5 * NAMES.index(name)) % len(OPTIMIZERS)]


def outputs(run: Run) -> list[torch.Tensor]:
    run.model.eval()
    with torch.no_grad():
        found = pytree.tree_leaves(zoo.call(run.model, run.batch(50)))
    run.model.train()
    return [leaf for leaf in found if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


@pytest.mark.parametrize(("method", "name"), WORKING)
def test_it_keeps_the_contracts(method, name):
    optimizer = optimizer_of(name)
    plain, run = Run(name, optimizer), Run(name, optimizer, METHODS[method])
    for before, after in zip(outputs(plain), outputs(run), strict=True):  # none of the four changes the function
        assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    owned = [p for group in run.optimizer.param_groups for p in group["params"]]
    trained = {id(p) for p in run.model.parameters() if p.requires_grad}
    assert len({id(p) for p in owned}) == len(owned)
    assert trained <= {id(p) for p in owned} <= {id(p) for p in run.model.parameters()}
    start = {key: p.detach().clone() for key, p in run.model.named_parameters()}
    run.train(0, 2)
    file = run.checkpoint()
    run.train(2, 4)
    resumed = Run(name, optimizer, METHODS[method], seed=5, handle_seed=99).load(file).train(2, 4)
    assert_same_bits(run.bits(), resumed.bits())
    assert all(p.isfinite().all() for p in run.model.parameters())
    now = {f"model.{key}": p for key, p in run.model.named_parameters()}
    assert differ({f"model.{key}": p for key, p in start.items()}, now)
    if method == "injection":  # a linear head and its successor learn the same function: who has learnt is what differs
        moved = {key for key, p in run.model.named_parameters() if not torch.equal(p, start[key])}
        assert any(".new." in key for key in moved)
        assert not any(".base." in key or ".copy." in key for key in moved)
        return
    plain.train(0, 4)
    assert any(not torch.equal(a, b) for a, b in zip(outputs(plain), outputs(run), strict=True)), "it did nothing"
    run.handle.detach()
    assert num_hooks(run.model, run.optimizer) == 0


@pytest.mark.parametrize(("method", "name"), [pair for pair in PAIRS if pair not in WORKING])
def test_it_is_refused_with_the_reason(method, name):
    plain, words = Run(name, "sgd"), REFUSED[method][name]
    with pytest.raises(PliantError, match=re.escape(words)) as caught:
        Run(name, "sgd", METHODS[method])
    assert type(METHODS[method]).__name__ in str(caught.value)
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.1)
    assert num_hooks(plain.model, optimizer) == 0


def test_what_is_refused_exists():
    for method, names in REFUSED.items():
        assert method in METHODS
        assert set(names) <= set(ZOO)
