"""Where the tokens of a model are: the embedding in which they are looked up, the output layer that predicts them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.units.adapters import is_adapter
from pliant.units.export import canonical_names
from pliant.units.patterns import matches

__all__ = ["TokenTable", "token_tables"]


@dataclass(frozen=True)
class TokenTable:
    """The rows that belong to tokens. Names, not objects.

    Attributes:
        module: Name of the embedding.
        weight: Name of its weight, ``[tokens, width]``.
        head: Name of the output layer's weight, ``[tokens, width]``; empty if there is none, or if it is that of the
            embedding (tied).
        bias: Name of the output layer's bias, ``[tokens]``; empty if there is none.
        num_tokens: The number of rows.
        is_tied: Whether the output layer's weight is the embedding's.
        padding: The row of the padding token, which is never trained; ``None`` if there is none.

    Example:
        >>> token_tables(nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8)))[0].weight
        '0.weight'
    """

    module: str
    weight: str
    head: str
    bias: str
    num_tokens: int
    is_tied: bool
    padding: int | None


def token_tables(model: nn.Module, where: str = "*", head: str = "*") -> tuple[TokenTable, ...]:
    """The embeddings of tokens in a model, each with its output layer.

    Args:
        model: The model.
        where: Which embeddings, a pattern of module names. ``"*"``: those that models of ``transformers`` in it name
            as their input embeddings (not those of positions); without such a model, its only embedding.
        head: Name of the output layer. ``"*"``: that which a model of ``transformers`` names, else a linear layer that
            shares the embedding's weight; ``""``: none, the output layer is left alone.

    Raises:
        NoEffect: If no embedding matches.
        IllegalConfiguration: If there are several and it is not said which, or there is no such output layer.
        NotYetSupported: If an embedding is inside an adapter: its base is frozen.

    Example:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.symbols, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)
        >>> token_tables(Model(), head="head")[0]
        TokenTable(module='symbols', weight='symbols.weight', head='head.weight', bias='head.bias', num_tokens=50, \
is_tied=False, padding=None)
    """
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    found: list[tuple[str, nn.Embedding, nn.Module | None]] = []
    for root in _hf_models(model):
        embedding = root.get_input_embeddings()  # type: ignore[operator]
        if is_adapter(embedding):
            raise NotYetSupported(
                f"the token embedding {names[id(embedding)]!r} has an adapter, so its rows are frozen. Train the "
                'embedding itself (modules_to_save=["..."]), or leave tokens alone.'
            )
        if isinstance(embedding, nn.Embedding) and id(embedding) in names:
            found.append((names[id(embedding)], embedding, root.get_output_embeddings()))  # type: ignore[operator]
    plain = [(name, item, None) for name, item in modules.items() if isinstance(item, nn.Embedding)]
    if where != "*":
        known = {name for name, _, _ in found}
        everything = [*found, *(item for item in plain if item[0] not in known)]
        chosen = [item for item in everything if matches(item[0], where)]
    elif found:
        chosen = found
    else:
        chosen = list(plain)
        if len(plain) > 1:
            raise IllegalConfiguration(
                f"{type(model).__name__} has several embeddings ({', '.join(repr(name) for name, _, _ in plain)}): say "
                "which hold tokens with where=..."
            )
    if not chosen:
        raise NoEffect(
            f"no embedding matches where={where!r}; {type(model).__name__} has: "
            f"{', '.join(repr(name) for name, _, _ in plain) or 'none'}."
        )
    canonical = canonical_names(model)
    return tuple(_table(modules, canonical, *item, head=head) for item in chosen)


def _hf_models(model: nn.Module) -> list[nn.Module]:
    """The outermost models of ``transformers``."""
    found: list[str] = []
    for name, module in model.named_modules():
        is_model = any(
            c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in type(module).__mro__
        )
        if is_model and not any(not root or name.startswith(f"{root}.") for root in found):
            found.append(name)
    return [model.get_submodule(name) for name in found]


def _table(
    modules: dict[str, nn.Module],
    canonical: dict[str, str],
    name: str,
    embedding: nn.Embedding,
    output: nn.Module | None,
    *,
    head: str,
) -> TokenTable:
    if head not in ("*", "") and head not in modules:
        raise IllegalConfiguration(f"there is no module {head!r} to be the output layer: head=... is a module's name.")
    chosen = output if head == "*" else modules.get(head) if head else None
    if chosen is None and head == "*":
        sharing = [item for item in modules.values() if isinstance(item, nn.Linear) and item.weight is embedding.weight]
        chosen = sharing[0] if sharing else None
    by_id = {id(tensor): canonical[full] for full, tensor in _tensors(modules)}
    weight = getattr(chosen, "weight", None)
    is_tied = weight is embedding.weight or any(
        isinstance(item, nn.Linear) and item.weight is embedding.weight for item in modules.values()
    )
    bias = getattr(chosen, "bias", None)
    if chosen is not None and (weight is None or weight.shape[:1] != embedding.weight.shape[:1]):
        raise IllegalConfiguration(
            f"the output layer {head!r} does not have one row for each of the {embedding.num_embeddings} tokens of "
            f"{name!r}. Name another with head=..., or pass head=''."
        )
    return TokenTable(
        name,
        by_id[id(embedding.weight)],
        "" if weight is None or weight is embedding.weight else by_id[id(weight)],
        "" if bias is None or head == "" else by_id[id(bias)],
        embedding.num_embeddings,
        is_tied,
        embedding.padding_idx,
    )


def _tensors(modules: dict[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    return list(modules[""].named_parameters(remove_duplicate=False))
