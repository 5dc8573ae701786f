"""The data that the streams are made of: digits shipped with the package, MNIST read from its original files."""

from __future__ import annotations
