"""The one writer: a reset changes what belongs to the units, nothing else, and keeps the function where it promises."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import zoo
from edit_tools import double, editor, mask_of, owned, state_tensors, trained, units_of
from torch import Tensor, nn
from zoo import NAMES, ZOO

import pliant
from pliant.stats.capture import named_tensors
from pliant.units.init import Init, initialisers
from pliant.units.replay import tensor_leaves


@pytest.mark.parametrize("name", NAMES)
def test_a_reset_changes_the_units_entries_and_nothing_else(name):
    """Weights, buffers and moments: all entries of the units, no entry of any other."""
    case = ZOO[name]
    for group in units_of(name):
        model, optimizer = trained(name)
        one = editor(model, optimizer, init=case.init)
        if unknown := [piece.name for piece in group.role("incoming") if one.inits[piece.name] is None]:
            assert (name, group.site) == ("hf_whisper", "residual")  # its sinusoids are drawn by nobody
            with pytest.raises(pliant.IllegalConfiguration, match=rf"{unknown[0]}.*init="):
                one.reset(group, mask_of(group.size))
            continue
        for parameter in model.parameters():  # make untouched moments recognisable
            for value in state_tensors(optimizer, parameter).values():
                value.add_(1.0)
        before = (
            {key: tensor.detach().clone() for key, tensor in named_tensors(model).items()},
            copy.deepcopy([state_tensors(optimizer, p) for p in model.parameters()]),
        )
        mask = mask_of(group.size)
        one.reset(group, mask)
        tensors = named_tensors(model)
        for key, tensor in tensors.items():
            if not tensor.is_floating_point():
                assert torch.equal(tensor, before[0][key])
                continue
            inside = owned(group, key, tensor.shape, mask)
            assert torch.equal(tensor[~inside], before[0][key][~inside]), f"{group.name}: {key} outside the units"
        for parameter, old in zip(model.parameters(), before[1], strict=True):
            key = next(k for k, v in tensors.items() if v is parameter)
            inside = owned(group, key, parameter.shape, mask)
            for kind, value in state_tensors(optimizer, parameter).items():
                assert not value[inside].any(), f"{group.name}: {kind} of {key}"
                assert torch.equal(value[~inside], old[kind][~inside])
        # incoming redrawn, biases zero, outgoing zero (an entry that is both ends at zero), norms restored
        for piece in group.role("outgoing"):
            if piece.role == "both" or piece.name.endswith("weight.original1"):  # zeroed, it would be dead, or NaN
                continue
            where = torch.tensor(piece.table)[mask].flatten()
            assert not piece.within(tensors[piece.name]).movedim(piece.dim, 0)[where].any(), piece
        for piece in group.role("incoming"):
            where = torch.tensor(piece.table)[mask].flatten()
            now = piece.within(tensors[piece.name]).movedim(piece.dim, 0)[where]
            old = piece.within(before[0][piece.name]).movedim(piece.dim, 0)[where]
            if tensors[piece.name].ndim == 1:
                assert not now.any(), piece
            else:
                # compare entry by entry, ignoring those that the same reset zeroed as outgoing
                assert (now != old).double().mean() > 0.8, piece
        for piece in group.role("carried"):
            where = torch.tensor(piece.table)[mask].flatten()
            now = piece.within(tensors[piece.name]).movedim(piece.dim, 0)[where]
            leaf = piece.name.rpartition(".")[2]
            if leaf in ("weight", "running_var"):
                assert torch.equal(now, torch.ones_like(now)), piece
            elif leaf in ("bias", "running_mean"):
                assert not now.any(), piece


@pytest.mark.parametrize("name", NAMES)
def test_a_reset_equals_the_network_with_zeroed_outgoing_weights(name):
    """The function-preservation contract, in both modes, for every group that promises it."""
    case = ZOO[name]
    promised = [group for group in units_of(name) if group.reset_preserves_function]
    assert promised or name in ("conv_groupnorm", "tied_autoencoder", "tied_autoencoder_deep")
    for group in promised:
        model, optimizer = trained(name)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
                module.dropout = 0.0
            if hasattr(module, "rate"):
                module.rate = 0.0
        mask = mask_of(group.size)
        zeroed = copy.deepcopy(model)
        with torch.no_grad():
            tensors = named_tensors(zeroed)
            for piece in group.role("outgoing"):
                piece.within(tensors[piece.name]).movedim(piece.dim, 0)[torch.tensor(piece.table)[mask].flatten()] = 0
        editor(model, optimizer, init=case.init).reset(group, mask)
        x = double(case.batch(seed=9), next(model.parameters()).dtype)
        for mode in (False, True):
            outputs = []
            for one in (model, zeroed):
                one.train(mode)
                with torch.no_grad():
                    torch.manual_seed(0)  # the same dropout, where it is functional
                    outputs.append(tensor_leaves(zoo.call(copy.deepcopy(one), x)))
            for a, b in zip(*outputs, strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e-12 if a.dtype == torch.float64 else 1e-6), (
                    group.name,
                    mode,
                )


def test_a_unit_under_layer_norm_is_not_promised_to_preserve():
    assert not units_of("transformer_post_norm")["embed:residual"].reset_preserves_function
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    assert not pliant.find_units(model, torch.randn(3, 5))["0"].reset_preserves_function


def test_flattened_channels_zero_the_columns_of_all_their_positions():
    """The published failure: after conv -> flatten, the wrong outgoing columns."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2)).double()
    units = pliant.find_units(model.float(), torch.randn(2, 1, 4, 4))
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = torch.tensor([False, True, False])
    before = model[3].weight.detach().clone()
    editor(model, optimizer).reset(units["0"], mask)
    assert not model[3].weight[:, 16:32].any()
    assert torch.equal(model[3].weight[:, :16], before[:, :16])
    assert torch.equal(model[3].weight[:, 32:], before[:, 32:])


def test_a_matrix_that_is_rows_and_columns_ends_with_zero_columns():
    """A reused layer: the fresh rows of a unit must not be fed by, nor feed, reset units."""
    model, optimizer = trained("mlp_reused")
    group = units_of("mlp_reused")["first"]
    editor(model, optimizer).reset(group, mask_of(8))
    assert not model.again.weight[:, [0, 7]].any()
    assert model.again.weight[[0, 7], 1:7].abs().min() > 0


def test_zeroed_columns_win_over_fresh_rows_whatever_the_layout():
    """Stored inputs first (as transposed convolutions and GPT-2's Conv1D do), the outgoing slice comes first."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w0, self.w = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6, 6))
            self.w2 = nn.Parameter(torch.randn(6, 2))

        def forward(self, x):
            x = torch.relu(x @ self.w0)
            return torch.relu(torch.relu(x @ self.w) @ self.w) @ self.w2

    model = Square()
    units = pliant.find_units(model, torch.randn(3, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = torch.tensor([True, False, False, True, False, False])
    group = units["w0"]
    assert {(p.name, p.dim, p.role) for p in group.slices} >= {("w", -2, "outgoing"), ("w", -1, "incoming")}
    editor(model, optimizer, init="kaiming_uniform").reset(group, mask)
    assert not model.w[[0, 3]].any()
    assert not model.w2[[0, 3]].any()


# ---- draws ----
@pytest.mark.parametrize("name", ["mlp", "conv_bn_flatten", "conv_grouped", "unet", "transformer_norm_first"])
def test_fresh_weights_have_the_layers_own_distribution(name):
    """Bound and deviation of what a reset draws are those of the module's own reset_parameters."""
    model = ZOO[name].model()
    inits = initialisers(model)
    for module_name, module in model.named_modules():
        if not hasattr(module, "reset_parameters") and not hasattr(module, "_reset_parameters"):
            continue
        fresh = copy.deepcopy(module)
        seen: dict[str, list[Tensor]] = {}
        for seed in range(60):
            torch.manual_seed(seed)
            getattr(fresh, "reset_parameters", getattr(fresh, "_reset_parameters", None))()
            for leaf, parameter in fresh.named_parameters(recurse=False):
                seen.setdefault(leaf, []).append(parameter.detach().clone().flatten())
        for leaf, values in seen.items():
            init = inits[f"{module_name}.{leaf}" if module_name else leaf]
            if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear) and leaf == "bias":
                continue  # nn.MultiheadAttention sets it to zero afterwards
            many = torch.cat(values)
            drawn = init.draw((many.numel(),), torch.Generator().manual_seed(0))
            assert drawn.std(correction=0) == pytest.approx(many.std(correction=0).item(), rel=0.1, abs=1e-7), (
                module_name,
                leaf,
            )
            assert drawn.abs().max() == pytest.approx(many.abs().max().item(), rel=0.1, abs=1e-7)
            error = 5 * float(many.std(correction=0)) / many.numel() ** 0.5  # five standard errors
            assert drawn.mean().item() == pytest.approx(many.mean().item(), abs=error + 1e-6)


def test_named_initialisations_are_those_of_torch():
    for name, fill in {
        "kaiming_uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
        "kaiming_normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
        "xavier_uniform": nn.init.xavier_uniform_,
        "xavier_normal": nn.init.xavier_normal_,
    }.items():
        model = nn.Sequential(nn.Conv2d(4, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 50))
        for at in (0, 3):
            init = initialisers(model, name)[f"{at}.weight"]
            weight = torch.empty_like(model[at].weight)
            torch.manual_seed(0)
            fill(weight)
            drawn = init.draw(tuple(weight.shape), torch.Generator().manual_seed(1))
            assert drawn.std() == pytest.approx(weight.std().item(), rel=0.06), name
            if "uniform" in name:
                assert init.scale == pytest.approx(weight.abs().max().item(), rel=0.02)
            assert initialisers(model, name)[f"{at}.bias"] == Init("constant", 0.0)


def test_mistakes_in_init_are_named():
    model = ZOO["mlp"].model()
    with pytest.raises(pliant.IllegalConfiguration, match="kaiming_uniform"):
        initialisers(model, "no_such")
    with pytest.raises(pliant.IllegalConfiguration, match=r"5\.\*"):
        initialisers(model, {"5.*": "xavier_uniform"})


# ---- whole tensors, factors ----
def test_scale_multiplies_the_units_weights():
    for name in ("conv_bn_flatten", "conv_grouped", "swiglu"):
        for group in units_of(name):
            for role in ("incoming", "outgoing"):
                model, optimizer = trained(name)
                before = copy.deepcopy(model.state_dict())
                factor = torch.linspace(0.5, 2.0, group.size, dtype=torch.float64)
                editor(model, optimizer).scale(group, factor, role=role)
                for key, tensor in named_tensors(model).items():
                    want = before[key].clone()
                    for piece in group.role(role):
                        if piece.name == key:
                            along = piece.within(want).movedim(piece.dim, 0)
                            for unit, row in enumerate(piece.table):
                                along[list(row)] *= factor[unit]
                    assert torch.allclose(tensor.double(), want.double()), (group.name, role, key)


def test_an_empty_mask_edits_and_logs_nothing():
    model, optimizer = trained("mlp")
    before = copy.deepcopy(model.state_dict())
    one = editor(model, optimizer)
    one.reset(units_of("mlp")["0"], torch.zeros(8, dtype=torch.bool))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(one.events) == 0


def test_autograd_notices_an_edit_between_forward_and_backward():
    """Edits are visible to autograd's version counters (a write through ``.data`` would give wrong gradients)."""
    model, optimizer = trained("mlp")
    out = model(double(ZOO["mlp"].batch()))
    editor(model, optimizer).reset(units_of("mlp")["2"], mask_of(6))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("old_style", [False, True])
def test_what_a_weight_normalised_layer_reads_is_drawn_anew_because_zeros_have_no_direction(old_style):
    """Were all outgoing weights zeroed, as for other layers, g * v / |v| would be NaN."""
    torch.manual_seed(0)
    norm = nn.utils.weight_norm if old_style else nn.utils.parametrizations.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old form is deprecated
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), norm(nn.Linear(6, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = pliant.ReDo(tau=1e9, every=1)  # all units at once
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 4))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert int(handle.num_resets["0"]) == 18
    assert not handle.units["0"].reset_preserves_function
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(torch.randn(8, 4)).isfinite().all()


def test_fresh_units_are_not_the_initial_ones_although_everything_is_seeded_alike():
    """torch.manual_seed(0) made the network; a generator seeded with 0 would hand out the same rows again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    rows = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pliant.attach(model, optimizer, pliant.ReDo(tau=1e9, every=1), example_inputs=torch.randn(2, 6), seed=0)
    model(torch.randn(8, 6)).sum().backward()
    optimizer.step()
    distance = torch.cdist(model[0].weight.detach(), rows)
    assert distance.min() > 0.05
