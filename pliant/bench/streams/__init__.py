"""The streams, one file each; ``STREAMS`` looks them up by name, ``my.module:Class`` names any other."""

from __future__ import annotations

from pliant.bench.streams.base import Stream, Task, Traits, traits
from pliant.bench.streams.changing_control import ChangingControl
from pliant.bench.streams.character_drift import CharacterDrift
from pliant.bench.streams.class_incremental import ClassIncremental
from pliant.bench.streams.click_through import ClickThrough
from pliant.bench.streams.continual_imagenet import ContinualImageNet
from pliant.bench.streams.continual_tiny_imagenet import ContinualTinyImageNet
from pliant.bench.streams.data_growth import DataGrowth
from pliant.bench.streams.day_and_weather import DayAndWeather
from pliant.bench.streams.five_plus_one import FivePlusOne
from pliant.bench.streams.folder import FolderStream, write_folder
from pliant.bench.streams.input_permuted import InputPermuted
from pliant.bench.streams.iterable import IterableStream
from pliant.bench.streams.label_noise import LabelNoise
from pliant.bench.streams.label_permuted import LabelPermuted
from pliant.bench.streams.locomotion import Ant, Hopper, SlipperyAnt, Walker
from pliant.bench.streams.permuted_digits import PermutedDigits
from pliant.bench.streams.permuted_mnist import PermutedMNIST
from pliant.bench.streams.random_label_digits import RandomLabelDigits
from pliant.bench.streams.random_label_images import RandomLabelImages
from pliant.bench.streams.recurring import Recurring
from pliant.bench.streams.regime_switching import RegimeSwitching
from pliant.bench.streams.slowly_changing_regression import SlowlyChangingRegression
from pliant.bench.streams.smooth_drift import SmoothDrift
from pliant.bench.streams.stationary_digits import StationaryDigits

__all__ = [
    "STREAMS",
    "Ant",
    "ChangingControl",
    "CharacterDrift",
    "ClassIncremental",
    "ClickThrough",
    "ContinualImageNet",
    "ContinualTinyImageNet",
    "DataGrowth",
    "DayAndWeather",
    "FivePlusOne",
    "FolderStream",
    "Hopper",
    "InputPermuted",
    "IterableStream",
    "LabelNoise",
    "LabelPermuted",
    "PermutedDigits",
    "PermutedMNIST",
    "RandomLabelDigits",
    "RandomLabelImages",
    "Recurring",
    "RegimeSwitching",
    "SlipperyAnt",
    "SlowlyChangingRegression",
    "SmoothDrift",
    "StationaryDigits",
    "Stream",
    "Task",
    "Traits",
    "Walker",
    "traits",
    "write_folder",
]

STREAMS: dict[str, type] = {
    cls.name: cls
    for cls in (
        PermutedDigits,
        PermutedMNIST,
        RandomLabelDigits,
        StationaryDigits,
        InputPermuted,
        SlowlyChangingRegression,
        ContinualImageNet,
        ClassIncremental,
        RandomLabelImages,
        LabelPermuted,
        FivePlusOne,
        DataGrowth,
        ContinualTinyImageNet,
        LabelNoise,
        Recurring,
        SmoothDrift,
        DayAndWeather,
        RegimeSwitching,
        ClickThrough,
        CharacterDrift,
        ChangingControl,
        SlipperyAnt,
        Ant,
        Hopper,
        Walker,
        FolderStream,
        IterableStream,
    )
}
"""Stream classes by the name that experiments and the command line use."""
