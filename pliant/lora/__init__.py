"""LoRA adapters (``peft``): what their rank components are, and how weak ones begin anew without a trace.

Component :math:`i` of an adapter is row :math:`a_i` of ``A`` and column :math:`b_i` of ``B``: permuting components
leaves :math:`BA` unchanged, so they are a unit group, which :func:`pliant.find_units` finds by itself. Methods for
units act on them as on any others. :class:`RankRecycling` does what only adapters allow: it writes the contribution
of a weak component into the base weight before it draws the component anew, so that nothing is lost.

After that the adapter alone is not the model any more. :func:`save_folded` and :func:`load_folded` keep both together,
and ``save_pretrained`` refuses to write half of it.
"""

from pliant.lora.layers import Pair, check_peft, contributions, folded_delta, pairs
from pliant.lora.recycling import RankRecycling
from pliant.lora.saving import BASE_FILE, folded_weights, load_folded, save_folded

__all__ = [
    "BASE_FILE",
    "Pair",
    "RankRecycling",
    "check_peft",
    "contributions",
    "folded_delta",
    "folded_weights",
    "load_folded",
    "pairs",
    "save_folded",
]
