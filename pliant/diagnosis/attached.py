"""Whether methods that are attached have done anything yet, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pliant.diagnosis.findings import AttachedMethod

if TYPE_CHECKING:
    from pliant.handle import Handle

__all__ = ["attached"]

_CALLS = {
    "penalty": "handle.penalty() has not been called, so its term is not in the loss",
    "batch": "handle.batch() has not been called, so it has seen no batch",
    "task_boundary": "handle.task_boundary() has not been called, and it acts there",
}


def attached(handle: Handle) -> tuple[AttachedMethod, ...]:
    """What each method of a handle has done so far."""
    edits: dict[str, int] = {}
    for event in handle.events:
        edits[event.intervention] = edits.get(event.intervention, 0) + event.count
    found = []
    for method in handle.methods:
        name = type(method).__name__
        units = sum(len(event.units) for event in handle.events if event.intervention == name)
        if name in edits:
            what = f"{units} units edited" if units else f"edited at {edits[name]} steps"
            if handle.events.dry_run:
                found.append(AttachedMethod(name, False, f"nothing was written (dry run); it would be: {what}."))
            else:
                found.append(AttachedMethod(name, True, f"{what} in {handle.num_steps} steps."))
        else:
            found.append(AttachedMethod(name, *_idle(handle, method, name)))
    return tuple(found)


def _idle(handle: Handle, method: Any, name: str) -> tuple[bool, str]:
    """Of a method that has left no event: whether it acts all the same, and why it may not."""
    steps = handle.num_steps
    waiting = [words for call, words in _CALLS.items() if name in handle.waiting_for(call)]
    if waiting:
        return False, f"nothing so far: {waiting[0]}."
    if not steps:
        return False, "nothing so far: the optimizer has not stepped since it was attached."
    if method.needs_penalty:
        return True, f"its term is in the loss; {steps} steps so far."
    maturity = getattr(method, "maturity_threshold", None)
    if isinstance(maturity, int) and steps <= maturity:
        return False, f"no reset so far: no unit is mature ({steps} steps were done, units mature after {maturity})."
    every = getattr(method, "every", None)
    if isinstance(every, int) and steps < every:
        return False, f"nothing so far: it acts every {every} steps, and {steps} were done."
    unheard = [group for group in handle.unheard if group in handle.units]
    if unheard:
        return False, f"nothing so far, and the activations of {unheard[0]!r} were never seen: is that module called?"
    return False, f"nothing in {steps} steps: no unit or weight met its criterion."
