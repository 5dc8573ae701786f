"""TokenReset: rows of tokens that do not occur are kept fresh; of all tokens: active forgetting (Chen et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.interventions.base import Context, Intervention, Tensors, require
from pliant.interventions.state import StateKind
from pliant.search import Domain, Range
from pliant.tokens.rows import RowInit, write_rows
from pliant.tokens.tables import TokenTable, token_tables

__all__ = ["TokenReset"]

_STATES = ("pending", "count", "since")


@final
@dataclass(frozen=True)
class TokenReset(Intervention):
    r"""Every so many steps, give the rows of tokens that have not occurred for long new values.

    .. math:: e_t \leftarrow \bar e + \sigma\, s \odot \xi_t \qquad \text{for } t \text{ unseen for } n \text{ steps}

    with the mean and the standard deviation of the rows that are in use, in the embedding and in an output layer that
    does not share its weight. Without it, weight decay, stale moments and the pressure of the softmax move these rows
    to where no fresh row would be; a token that comes back begins from there.

    What the model computes on inputs without these tokens changes only in the probabilities of these tokens.
    ``TokenReset(unseen_for=0, init="init")`` resets all rows at each period, which is active forgetting.

    Args:
        unseen_for: Steps without an occurrence after which a row is reset, and again at each period until its token
            occurs; counted in whole periods.
        every: Period in optimizer steps; ``None``: never (a no-op).
        init: ``"mean"``, as above, or ``"init"``: each tensor's own initial distribution.
        noise_scale: :math:`\sigma`, for ``"mean"``.
        where: Which embeddings, a pattern of module names, see :func:`pliant.tokens.token_tables`.
        head: Which output layer; ``""``: it is left alone.

    State:
        Per token: ``count``, its occurrences in training; ``since``, steps without one; ``pending``, what was counted
        since the method last looked, in this process.

    Edits:
        The rows, in embedding and output layer (weight and bias), and their moments.

    Deviations from the published code:
        Active forgetting resets the embedding of the input and the optimizer's state of it, in pre-training, every
        1,000 updates. Here rows of single tokens can be reset, and Adam's step counter stays, which is one for the
        whole tensor.

    Source:
        Chen et al., Improving Language Plasticity via Pretraining with Active Forgetting (2023), arXiv:2307.01163.
        New rows at the mean: Hewitt, Initializing New Word Embeddings for Pretrained Language Models (2021). Rows of
        unseen tokens as they are otherwise: Land and Bartolo, Fishing for Magikarp (2024), arXiv:2405.05417. Keeping
        unseen rows fresh: this library.

    Raises:
        IllegalConfiguration: At ``attach``, for an argument out of range, or if it is not clear which embedding holds
            tokens; when it is due, if the embedding was given no token.
        NotYetSupported: At ``attach``, for a stack of members or an embedding inside an adapter.
        NoEffect: At ``attach``, if no embedding matches, or none is trained.

    Example:
        >>> TokenReset(every=500).null()
        TokenReset(unseen_for=10000, every=None, init='mean', noise_scale=0.1, where='*', head='*')
    """

    unseen_for: int = 10_000
    every: int | None = 1000
    init: RowInit = "mean"
    noise_scale: float = 0.1
    where: str = "*"
    head: str = "*"

    state: ClassVar[Mapping[str, StateKind]] = {name: Tensors() for name in _STATES}
    source: ClassVar[str] = "Chen et al. 2023, and this library"
    search: ClassVar[Mapping[str, Domain]] = {"unseen_for": Range(0.5, 20, log=True, unit="task")}
    defaults: ClassVar[Mapping[str, str]] = {
        "unseen_for": "a choice of this library; active forgetting resets all rows, which is 0",
        "every": "active forgetting: every 1,000 updates",
        "init": "the mean of the other rows, Hewitt 2021; active forgetting draws initial values",
        "noise_scale": "a choice of this library: rows that differ, and are close to the mean",
        "where": "the input embeddings",
        "head": "the output layer of the same tokens",
    }

    def null(self) -> TokenReset:
        """Never due."""
        return replace(self, every=None)

    def check(self) -> None:
        """Refuse arguments out of range."""
        require(self.unseen_for >= 0, self, "unseen_for", ">= 0")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        require(self.init in ("mean", "init"), self, "init", "'mean' or 'init'")
        require(0 <= self.noise_scale < float("inf"), self, "noise_scale", "finite and >= 0")

    def next_step(self, ctx: Context) -> int:
        """The end of the period; a state of a smaller vocabulary that was loaded is made longer before."""
        if self.every is not None:
            self._fit(ctx, self._tables(ctx))
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Find the rows, and count from now on."""
        if self.every is None:
            return
        if ctx.num_members is not None:
            raise NotYetSupported("TokenReset: a stack of members has no embedding of its own; attach to one model.")
        tables = self._tables(ctx)
        if not tables:
            raise NoEffect(f"TokenReset: this optimizer trains no embedding that matches where={self.where!r}.")
        for table in tables:
            for name in (table.weight, table.head, table.bias):
                if name and self.init == "init":
                    ctx.edit.init_of(name)
        self._fit(ctx, tables)
        for table in tables:
            ctx.count_rows(table.module, ctx.tensors("pending"), table.weight)

    def after_step(self, ctx: Context) -> None:
        """When due."""
        if not ctx.clock.every(self.every):
            return
        assert self.every is not None
        for table in self._tables(ctx):
            pending, count, since = (ctx.tensors(name)[table.weight] for name in _STATES)
            seen = ctx.total_rows(pending)
            if can_read(seen) and not bool(seen.any()):
                raise IllegalConfiguration(
                    f"TokenReset: {table.module!r} was given no token in {self.every} training steps. It is called in "
                    "a way that its hook does not see (its weight is used directly, or embeddings are passed in), or "
                    "the model is in evaluation mode: call model.train()."
                )
            count.add_(seen)
            since.copy_(torch.where(seen > 0, 0, since + self.every))
            pending.zero_()
            unseen = since >= self.unseen_for
            reason = f"tokens unseen for {self.unseen_for} steps" if self.unseen_for else "all tokens"
            write_rows(ctx.edit, table, unseen, ~unseen, self.init, self.noise_scale, reason)

    def on_record(self, ctx: Context) -> Mapping[str, float]:
        """The fraction of tokens that were unseen for so long when it last looked."""
        found = [since >= self.unseen_for for since in ctx.tensors("since").values()]
        return {"unseen_fraction": float(torch.cat(found).float().mean())} if found else {}

    # ---- internals ----
    def _tables(self, ctx: Context) -> list[TokenTable]:
        """The tables whose embedding this optimizer trains."""
        mine = ctx.parameters()
        return [table for table in token_tables(ctx.modules[""], self.where, self.head) if table.weight in mine]

    def _fit(self, ctx: Context, tables: list[TokenTable]) -> None:
        """Counts for every row; those of tokens that a loaded state does not know begin at zero."""
        for table in tables:
            for name in _STATES:
                state, device = ctx.tensors(name), ctx.edit.tensors[table.weight].device
                old = state.get(table.weight, torch.zeros(0, dtype=torch.long)).to(device)
                if len(old) > table.num_tokens:
                    raise IllegalConfiguration(
                        f"TokenReset: the saved state counts {len(old)} tokens of {table.weight!r}, which has "
                        f"{table.num_tokens}: it belongs to a model with a larger vocabulary."
                    )
                if len(old) < table.num_tokens:
                    state[table.weight] = torch.cat([old, old.new_zeros(table.num_tokens - len(old))])
