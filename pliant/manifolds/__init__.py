"""The traps: frozen and cloned units as manifolds that one can build, certify, measure, simulate and leave."""

from pliant.manifolds.audit import Audit, Setting, audit
from pliant.manifolds.certificate import Certificate, Condition, certificate
from pliant.manifolds.cloning import Clone, clone
from pliant.manifolds.collapsing import Collapsed, collapse
from pliant.manifolds.confinement import Confinement, confinement
from pliant.manifolds.dynamics import matching_optimizer
from pliant.manifolds.escape import Escape, escape, escape_rate, variance_ratio
from pliant.manifolds.frozen import FrozenGroup, FrozenUnits, drift_after_freezing, frozen_in, frozen_units
from pliant.manifolds.kicks import DropoutBurst, NoiseBurst, kicked, reset_clones
from pliant.manifolds.linearity import transformed_tensors
from pliant.manifolds.partition import Partition, partition
from pliant.manifolds.projection import Distance, dimension, distance, normal_part, project, residual
from pliant.manifolds.redistribution import redistributed
from pliant.manifolds.search import FoundPartition, find_partition
from pliant.manifolds.stability import Stability, stability
from pliant.manifolds.symmetry import UnitSymmetries, unit_symmetries
from pliant.manifolds.trap import NormalShare, TrapTest, UnitSpread, trap_test

__all__ = [
    "Audit",
    "Certificate",
    "Clone",
    "Collapsed",
    "Condition",
    "Confinement",
    "Distance",
    "DropoutBurst",
    "Escape",
    "FoundPartition",
    "FrozenGroup",
    "FrozenUnits",
    "NoiseBurst",
    "NormalShare",
    "Partition",
    "Setting",
    "Stability",
    "TrapTest",
    "UnitSpread",
    "UnitSymmetries",
    "audit",
    "certificate",
    "clone",
    "collapse",
    "confinement",
    "dimension",
    "distance",
    "drift_after_freezing",
    "escape",
    "escape_rate",
    "find_partition",
    "frozen_in",
    "frozen_units",
    "kicked",
    "matching_optimizer",
    "normal_part",
    "partition",
    "project",
    "redistributed",
    "reset_clones",
    "residual",
    "stability",
    "transformed_tensors",
    "trap_test",
    "unit_symmetries",
    "variance_ratio",
]
