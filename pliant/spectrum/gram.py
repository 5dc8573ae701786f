r"""The exact spectrum of the generalised Gauss-Newton matrix, through its Gram matrix or itself, the smaller of both.

.. math:: G = \tilde J^\top \tilde J, \qquad K = \tilde J \tilde J^\top, \qquad
    \tilde J = \operatorname{blockdiag}(F_n^\top) J, \qquad F_n F_n^\top = \nabla_f^2 \ell

have the same eigenvalues but for zeros. K is a sum over parameters. Where a parameter belongs to a linear layer that
sees each sample once, its part is :math:`(B B^\top) \circ ((A A^\top + 1) \otimes 1)` with the layer's inputs A and the
gradients B of its outputs, so that no Jacobian is needed; for all others rows of the Jacobian are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.spectrum.problem import Problem

__all__ = ["DEFAULT_MEMORY", "Gram", "gram", "gram_bytes"]

DEFAULT_MEMORY = 2 * 2**30
"""Bytes that an exact spectrum or a Lanczos basis may take unless told otherwise."""


class Gram(NamedTuple):
    r"""A matrix with the nonzero eigenvalues of :math:`G`.

    Attributes:
        matrix: :math:`K`, ``[R, R]`` with rows ``r = (position, component of the factor)``, or :math:`G`, ``[D, D]``.
        method: How it was made: ``"layers"``, ``"jacobian"``, ``"layers+jacobian"`` or ``"parameters"`` (:math:`G`).
        of_outputs: Whether it is :math:`K`.
    """

    matrix: Tensor
    method: str
    of_outputs: bool


def gram_bytes(num_rows: int, num_parameters: int, dtype: torch.dtype = torch.float32) -> int:
    """Memory that the smaller matrix and its eigenvalues take, without what the model itself needs.

    Args:
        num_rows: Rows of the Jacobian: positions times outputs (for cross-entropy, one output less).
        num_parameters: Columns.
        dtype: What is computed in; eigenvalues are float64.

    Returns:
        Bytes: the matrix, a part that is added to it, and its copy and workspace in float64.

    Example:
        >>> gram_bytes(200 * 9, 100_000) / 2**20
        74.157...
    """
    side = min(num_rows, num_parameters)
    return side**2 * (2 * dtype.itemsize + 2 * 8)


def gram(
    problem: Problem, *, method: str = "auto", memory: int = DEFAULT_MEMORY, of_outputs: bool | None = None
) -> Gram:
    """The Gram matrix of a problem, or its Gauss-Newton matrix where that is smaller.

    Args:
        problem: The model on its batch.
        method: ``"auto"``, or ``"jacobian"`` to leave the layer-wise shortcut out.
        memory: Bytes that may be taken.
        of_outputs: Whether it must be the Gram matrix; ``None``: the smaller one.

    Raises:
        IllegalConfiguration: If it would take more, with what would fit.
    """
    with problem.explained("the exact Gauss-Newton matrix"):
        with torch.no_grad():
            factor_NPCQ = problem.target.factor(problem.at_parameters)
        valid = problem.target.valid
        num_rows = problem.num_positions * factor_NPCQ.shape[-1]
        of_outputs = num_rows <= problem.num_parameters if of_outputs is None else of_outputs
        _check_memory(problem, num_rows if of_outputs else problem.num_parameters, factor_NPCQ.shape[-1], memory)
        if not of_outputs:
            return Gram(_normal_matrix(problem, factor_NPCQ, valid, memory), "parameters", of_outputs=False)
        found = None if method == "jacobian" else _layers(problem, factor_NPCQ)
        done: set[str] = set() if found is None else found[1]
        matrix = torch.zeros((), dtype=problem.dtype, device=problem.device) if found is None else found[0]
        rest = [name for name in problem.names if name not in done]
        for names in _blocks(problem, rest, num_rows, memory):
            rows = torch.cat(list(_rows(problem, factor_NPCQ, valid, names, memory)))
            matrix = matrix + rows @ rows.T
    kinds = [kind for kind, used in (("layers", done), ("jacobian", rest)) if used]
    return Gram(matrix, "+".join(kinds), of_outputs=True)


def _check_memory(problem: Problem, side: int, per_position: int, memory: int) -> None:
    needed = gram_bytes(side, side, problem.dtype)
    if needed <= memory:
        return
    fits = int((memory / gram_bytes(1, 1, problem.dtype)) ** 0.5) // per_position
    raise IllegalConfiguration(
        f"the exact Gauss-Newton spectrum of {problem.num_positions} positions and {problem.num_parameters} parameters "
        f"needs {needed / 2**30:.1f} GiB, more than memory={memory / 2**30:.1f} GiB. Take at most {fits} positions "
        "(samples or tokens), fewer parameters (where=...), a larger memory=..., or method='lanczos'."
    )


# ---- layer by layer ----
class _Seen(NamedTuple):
    layer: nn.Linear
    inputs: Tensor
    outputs: Tensor


def _layers(problem: Problem, factor_NPCQ: Tensor) -> tuple[Tensor, set[str]] | None:
    """The part of K that belongs to linear layers which see one vector per sample, and their parameters' names."""
    if not problem.independent or factor_NPCQ.shape[1] != 1 or problem.target.valid is not None:
        return None
    names = {id(item): name for name, item in problem.model.named_parameters()}
    calls: dict[nn.Linear, list[Any]] = {}
    owners: dict[int, int] = {}
    for module in problem.model.modules():
        for item in module._parameters.values():
            owners[id(item)] = owners.get(id(item), 0) + 1

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor:
        # What follows may write into the output in place; it then writes into another tensor than the one kept.
        calls.setdefault(module, []).append((args[0] if args else kwargs.get("input"), output))  # type: ignore[arg-type]
        return output.clone()  # type: ignore[no-any-return]

    linears = [module for module in problem.model.modules() if type(module) is nn.Linear]
    # taken before the forward pass, which puts other tensors in their place
    own = {module: {kind: id(module._parameters[kind]) for kind in ("weight", "bias")} for module in linears}
    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in linears]
    leaves = {name: item.detach().requires_grad_() for name, item in problem.parameters.items()}
    try:
        with torch.enable_grad():
            out_NC = problem.outputs(leaves)[:, 0]
    finally:
        for hook in hooks:
            hook.remove()
    seen: list[tuple[_Seen, dict[str, str]]] = []
    for module, found in calls.items():
        mine = {
            kind: name
            for kind, key in own[module].items()
            if module._parameters[kind] is not None and (name := names.get(key, "")) in problem.parameters
        }
        once = len(found) == 1 and all(owners[own[module][kind]] == 1 for kind in mine)
        if mine and once and isinstance(found[0][0], Tensor) and found[0][1].requires_grad:
            inputs, outputs = found[0]
            if inputs.ndim == 2 and len(inputs) == problem.num_samples and len(outputs) == len(out_NC):
                seen.append((_Seen(module, inputs.detach(), outputs), mine))
    seen = _explained_by_layers(out_NC, factor_NPCQ[:, 0], seen, leaves)
    if not seen:
        return None
    tensors = [item.outputs for item, _ in seen]
    columns = [
        torch.autograd.grad(out_NC, tensors, factor_NPCQ[:, 0, :, q], retain_graph=True, allow_unused=True)
        for q in range(factor_NPCQ.shape[-1])
    ]
    num, width = factor_NPCQ.shape[0], factor_NPCQ.shape[-1]
    total = torch.zeros(num * width, num * width, dtype=problem.dtype, device=problem.device)
    for place, (layer, mine) in enumerate(seen):
        parts = [column[place] for column in columns]
        if all(part is None for part in parts):
            continue
        zero = torch.zeros_like(layer.outputs)
        back = torch.stack([zero if part is None else part for part in parts], 1).flatten(0, 1)
        inside = torch.zeros(num, num, dtype=problem.dtype, device=problem.device)
        if "weight" in mine:
            inside = inside + layer.inputs @ layer.inputs.T
        if "bias" in mine:
            inside = inside + 1
        blocks = (back @ back.T).view(num, width, num, width)
        total.view(num, width, num, width).addcmul_(blocks, inside[:, None, :, None])
    return total, {name for _, mine in seen for name in mine.values()}


def _explained_by_layers(
    out_NC: Tensor, factor_NCQ: Tensor, seen: list[tuple[_Seen, dict[str, str]]], leaves: dict[str, Tensor]
) -> list[tuple[_Seen, dict[str, str]]]:
    """The layers whose parameters are used nowhere else: their gradients are those that the layer gives.

    Modules say nothing about a weight that is read as a tensor elsewhere, so one gradient is compared.
    """
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(factor_NCQ.shape[-1], generator=generator, dtype=torch.float32).to(factor_NCQ)
    names = [name for _, mine in seen for name in mine.values()]
    wanted = [*(item.outputs for item, _ in seen), *(leaves[name] for name in names)]
    if not wanted:
        return []
    found = torch.autograd.grad(out_NC, wanted, factor_NCQ @ mix, retain_graph=True, allow_unused=True)
    whole = dict(zip(names, found[len(seen) :], strict=True))
    kept = []
    for (layer, mine), back in zip(seen, found, strict=False):
        back = torch.zeros_like(layer.outputs) if back is None else back
        parts = {"weight": back.T @ layer.inputs, "bias": back.sum(0)}
        if all(_close(whole[name], parts[kind]) for kind, name in mine.items()):
            kept.append((layer, mine))
    return kept


def _close(whole: Tensor | None, part: Tensor) -> bool:
    if whole is None:
        return not bool(part.any())
    scale = part.abs().max() + whole.abs().max()
    return bool((whole - part).abs().max() <= 1e4 * torch.finfo(part.dtype).eps * scale)


# ---- rows of the Jacobian ----
def _rows(
    problem: Problem, factor_NPCQ: Tensor, valid: Tensor | None, names: list[str], memory: int
) -> Iterator[Tensor]:
    r"""Rows of :math:`\tilde J` for some parameters, ``[r, D']`` at a time, ordered by position and column.

    Plain autograd goes backwards, several rows at once: a forward pass that branches on data, or changes a buffer in
    place, is no obstacle here, as it would be to ``torch.func``.
    """
    num, _, components, width = factor_NPCQ.shape
    leaves = {name: item.detach().requires_grad_(name in names) for name, item in problem.parameters.items()}
    wanted = [leaves[name] for name in names]
    size = sum(item.numel() for item in wanted)
    at_once = max(1, int(memory / 4 // max(1, size * problem.dtype.itemsize)))
    pieces = range(num) if problem.independent else [None]
    for piece in pieces:
        with torch.enable_grad():
            out = problem.outputs(leaves, None if piece is None else problem.sample(piece))
        mine = factor_NPCQ if piece is None else factor_NPCQ[piece : piece + 1]
        counts = None if valid is None else (valid if piece is None else valid[piece]).flatten().tolist()
        # one cotangent per position and column, zero at all other positions
        flat = mine.reshape(-1, components, width)
        rows = [
            (place, column) for place in range(len(flat)) if counts is None or counts[place] for column in range(width)
        ]
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            cotangent = torch.zeros(len(some), len(flat), components, dtype=out.dtype, device=out.device)
            for row, (place, column) in enumerate(some):
                cotangent[row, place] = flat[place, :, column]
            yield _backward(out, wanted, cotangent.view(len(some), *out.shape))


def _backward(out: Tensor, wanted: list[Tensor], cotangent: Tensor) -> Tensor:
    """Products of some cotangents with the Jacobian, ``[r, D']``."""
    num = len(cotangent)
    if not out.requires_grad:
        return torch.cat([item.new_zeros(num, item.numel()) for item in wanted], 1)
    try:
        found = torch.autograd.grad(out, wanted, cotangent, is_grads_batched=True, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "vmap" not in str(error) and "batch" not in str(error).lower():
            raise
        # an operation whose backward pass cannot take several rows at once gets them one by one
        single = [torch.autograd.grad(out, wanted, row, retain_graph=True, allow_unused=True) for row in cotangent]
        found = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*single, strict=True))  # type: ignore[misc]
    return torch.cat(
        [
            item.new_zeros(num, item.numel()) if grad is None else grad.reshape(num, -1)
            for item, grad in zip(wanted, found, strict=True)
        ],
        1,
    )


def _blocks(problem: Problem, names: list[str], num_rows: int, memory: int) -> Iterator[list[str]]:
    """Parameters in groups whose Jacobian fits into half of the memory."""
    limit = max(1, memory // (2 * num_rows * problem.dtype.itemsize))
    block: list[str] = []
    for name in names:
        size = problem.parameters[name].numel()
        if size > limit:
            raise IllegalConfiguration(
                f"the Jacobian of {num_rows} outputs with respect to {name!r} ({size} entries) needs "
                f"{num_rows * size * problem.dtype.itemsize / 2**30:.1f} GiB, more than half of "
                f"memory={memory / 2**30:.1f} GiB. Take at most {max(1, int(problem.num_positions * limit / size))} "
                "positions (samples or tokens), leave it out (where=...), or use method='lanczos'."
            )
        if block and sum(problem.parameters[item].numel() for item in block) + size > limit:
            yield block
            block = []
        block.append(name)
    if block:
        yield block


def _normal_matrix(problem: Problem, factor_NPCQ: Tensor, valid: Tensor | None, memory: int) -> Tensor:
    """G itself, by adding up rows."""
    size = problem.num_parameters
    total = torch.zeros(size, size, dtype=problem.dtype, device=problem.device)
    for rows in _rows(problem, factor_NPCQ, valid, problem.names, memory):
        total.addmm_(rows.T, rows)
    return total
