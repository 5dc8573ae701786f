"""The traps: frozen and cloned units as manifolds that one can build, certify, measure, simulate and leave."""

from pliant.manifolds.certificate import Certificate, Condition, certificate
from pliant.manifolds.cloning import Clone, Collapsed, clone, collapse
from pliant.manifolds.partition import Partition, partition
from pliant.manifolds.projection import Distance, dimension, distance, normal_part, project, residual
from pliant.manifolds.search import FoundPartition, find_partition

__all__ = [
    "Certificate",
    "Clone",
    "Collapsed",
    "Condition",
    "Distance",
    "Partition",
    "FoundPartition",
    "certificate",
    "clone",
    "collapse",
    "dimension",
    "distance",
    "find_partition",
    "normal_part",
    "partition",
    "project",
    "residual",
]
