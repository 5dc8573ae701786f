"""New values for the rows of some tokens, once; and more rows, with the optimizer following."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.attach import handles_of
from pliant.edit import Editor
from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.events import EventLog
from pliant.optimizer_state import MomentSpec, check_optimizer, moments
from pliant.sharded import sharded_modules
from pliant.stats.capture import named_tensors
from pliant.tokens.rows import RowInit, write_rows
from pliant.tokens.tables import TokenTable, token_tables
from pliant.units.export import refuse_wrapped
from pliant.units.init import InitSpec, initialisers
from pliant.wiring import as_optimizers, find_owners

__all__ = ["grow_vocabulary", "renew_tokens"]


def renew_tokens(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    tokens: Iterable[int] | Tensor,
    *,
    init: RowInit = "mean",
    noise_scale: float = 0.1,
    where: str = "*",
    head: str = "*",
    seed: int = 0,
    draws: InitSpec = None,
    moments: MomentSpec = None,
) -> tuple[str, ...]:
    r"""Give the rows of some tokens new values, in the embedding and in the output layer, and clear their moments.

    With a tied output layer there is one row for both. Rows at the mean of the others give a token, as an output, at
    most the probability that an average token has; see :class:`pliant.tokens.TokenReset` for the formula.

    Args:
        model: The model; a handle may be attached to it.
        optimizer: The optimizers that train it.
        tokens: Which, numbers of rows.
        init: ``"mean"`` of all other rows, with noise, or ``"init"``: each tensor's initial distribution.
        noise_scale: Of the noise, in standard deviations of the other rows, dimension by dimension.
        where: Which embeddings, see :func:`pliant.tokens.token_tables`.
        head: Which output layer.
        seed: Of the draws; the same in all processes.
        draws: For ``"init"``: as ``init`` of :func:`pliant.attach`, where a distribution is not known.
        moments: As for :func:`pliant.attach`.

    Returns:
        The names of the tensors that were written.

    Raises:
        IllegalConfiguration: If a token is not in the vocabulary, or nobody trains the embedding.

    Example:
        >>> model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> renew_tokens(model, optimizer, [5], head="1", noise_scale=0.0)
        ('0.weight', '1.weight', '1.bias')
        >>> torch.testing.assert_close(model[0].weight[5], model[0].weight[:5].mean(0))
    """
    edit = _editor(model, optimizer, seed, draws, moments)
    written: list[str] = []
    for table in token_tables(model, where, head):
        numbers = torch.as_tensor(tokens if isinstance(tokens, Tensor) else list(tokens), dtype=torch.long).flatten()
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < table.num_tokens:
            raise IllegalConfiguration(
                f"tokens {int(numbers.min())} to {int(numbers.max())} are not all rows of {table.weight!r}, which has "
                f"{table.num_tokens}: grow it first with pliant.tokens.grow_vocabulary."
            )
        if table.weight not in edit.owners:
            raise IllegalConfiguration(f"no given optimizer trains {table.weight!r}: pass the one that does.")
        chosen = torch.zeros(table.num_tokens, dtype=torch.bool, device=edit.tensors[table.weight].device)
        chosen[numbers.to(chosen.device)] = True
        written += write_rows(edit, table, chosen, ~chosen, init, noise_scale, "renewed")
    return tuple(written)


def grow_vocabulary(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    num_tokens: int,
    *,
    init: RowInit = "mean",
    noise_scale: float = 0.1,
    where: str = "*",
    head: str = "*",
    seed: int = 0,
    moments: MomentSpec = None,
) -> TokenTable:
    """Add rows for new tokens to the embedding and the output layer; the optimizers own them, and keep what they know.

    Models of ``transformers`` are resized by their own ``resize_token_embeddings``, which alone would leave the
    optimizer with moments of the old size, or with the old tensors. Old rows keep values and moments; gradients of
    the old size are dropped.

    The order, where Pliant is attached: ``state = handle.state_dict()``, ``handle.detach()``, grow, ``attach`` again,
    ``handle.load_state_dict(state, on_mismatch="reinit_group")``, which keeps everything that fits.

    Args:
        model: The model, without DDP, FSDP and ``torch.compile``.
        optimizer: The optimizers that train it.
        num_tokens: The new number of rows, larger than the old.
        init: As for :func:`renew_tokens`, for the new rows.
        noise_scale: As for :func:`renew_tokens`.
        where: Which embedding, see :func:`pliant.tokens.token_tables`.
        head: Which output layer.
        seed: Of the draws.
        moments: As for :func:`pliant.attach`.

    Returns:
        Where the rows are now.

    Raises:
        IllegalConfiguration: If a handle is attached, several embeddings match, or the number is not larger.
        NotYetSupported: If the model is sharded, or the optimizer keeps state that cannot be extended.

    Example:
        >>> model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> grow_vocabulary(model, optimizer, 8, head="1").num_tokens
        8
        >>> model(torch.tensor([7])).shape
        torch.Size([1, 8])
    """
    refuse_wrapped(model, sharded=True)
    if sharded_modules(model):
        raise NotYetSupported("a model that is sharded by fully_shard cannot grow: grow it before it is sharded.")
    attached = handles_of(model)
    if attached:
        raise IllegalConfiguration(
            f"{attached[0]!r} is attached to this model, and would go on editing the old tensors: state = "
            "handle.state_dict(), handle.detach(), grow, attach again, and load the state."
        )
    optimizers = as_optimizers(optimizer)
    for item in optimizers:
        check_optimizer(item)
    tables = token_tables(model, where, head)
    if len(tables) > 1:
        raise IllegalConfiguration(f"{len(tables)} embeddings match where={where!r}: grow one after the other.")
    table = tables[0]
    if num_tokens <= table.num_tokens:
        raise IllegalConfiguration(
            f"num_tokens={num_tokens} is not more than the {table.num_tokens} rows that {table.weight!r} has: only "
            "growing is supported, since shrinking would renumber tokens."
        )
    before = dict(model.named_parameters())
    names = [name for name in (table.weight, table.head, table.bias) if name]
    owners = find_owners(before, optimizers)
    grown = {
        name: _grown_state(owners[name], before[name], name, num_tokens, moments) for name in names if name in owners
    }
    _resize(model, table, names, num_tokens)
    after = dict(model.named_parameters())
    for name in names:
        if name in owners:
            _follow(owners[name], before[name], after[name], grown[name])
    new = token_tables(model, where, head)[0]
    edit = _editor(model, optimizers, seed, None, moments)
    added = torch.arange(num_tokens, device=after[table.weight].device) >= table.num_tokens
    write_rows(edit, new, added, ~added, init, noise_scale, "new tokens")
    return new


def _editor(
    model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], seed: int, draws: InitSpec, declared: MomentSpec
) -> Editor:
    optimizers = as_optimizers(optimizer)
    for item in optimizers:
        check_optimizer(item)
    tensors = named_tensors(model)
    return Editor(
        tensors,
        find_owners(tensors, optimizers),
        initialisers(model, draws),
        (seed,),
        num_members=None,
        events=EventLog(),
        declared=declared,
    )


def _resize(model: nn.Module, table: TokenTable, names: Sequence[str], num_tokens: int) -> None:
    """Longer tensors in the old ones' places; what the new rows hold is decided later."""
    for root in model.modules():
        is_model = callable(getattr(type(root), "resize_token_embeddings", None))
        if is_model and root.get_input_embeddings() is model.get_submodule(table.module):  # type: ignore[operator]
            with torch.random.fork_rng():
                root.resize_token_embeddings(num_tokens, mean_resizing=False)  # type: ignore[operator]
            break
    for name in names:
        old = model.get_parameter(name)
        values = old.detach()
        if len(values) < num_tokens:
            values = torch.cat([values, values.new_zeros(num_tokens - len(values), *values.shape[1:])])
        # a new parameter in any case: one whose size was changed in place keeps an old graph's idea of its gradient
        new = nn.Parameter(values.clone(), old.requires_grad)
        for module in model.modules():
            for key, own in module._parameters.items():
                if own is old:
                    module._parameters[key] = new
                    for size in ("num_embeddings", "out_features"):
                        if getattr(module, size, None) == table.num_tokens:
                            setattr(module, size, num_tokens)


def _grown_state(
    optimizer: Optimizer, parameter: Tensor, name: str, num_tokens: int, declared: MomentSpec
) -> dict[str, Any]:
    """The optimizer's state of a parameter, with entries for more rows; refused before anything is changed."""
    fresh = {id(item.value): item.fresh for item in moments(optimizer, parameter, name, declared)}
    grown: dict[str, Any] = {}
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
            first = fresh.get(id(value), 0.0)
            longer = value.new_zeros(num_tokens, *value.shape[1:])
            if not isinstance(first, str):
                longer.fill_(first)
            longer[: len(value)] = value
            grown[key] = longer
        else:
            grown[key] = value
    return grown


def _follow(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, state: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if item is old else item for item in group["params"]]
    optimizer.state.pop(old, None)
    if state:
        optimizer.state[new] = state
