"""Pliant keeps neural networks able to learn: measure, diagnose and prevent loss of plasticity in any PyTorch model."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pliant.attach import attach
    from pliant.averages import follow_resets
    from pliant.diagnosis import Diagnosis, diagnose
    from pliant.edit_log import EditLog, LoggedEvent, read_edits
    from pliant.errors import (
        IllegalConfiguration,
        NoEffect,
        NoEffectWarning,
        NotYetSupported,
        PliantError,
        RecordError,
        UnsupportedError,
        UnsupportedOp,
    )
    from pliant.fresh import fresh_twin
    from pliant.handle import Handle
    from pliant.integrations import sb3 as sb3
    from pliant.interventions import (
        FIRE,
        L2,
        AdaptiveNormalization,
        CChain,
        ContinualBackprop,
        ExperienceReplay,
        FeatureNorm,
        FreshStart,
        GradientNoise,
        HareAndTortoise,
        InsertDropout,
        InsertNormalization,
        L2EffectiveRank,
        L2Init,
        LayerReset,
        NormalizeAndProject,
        OptimizerReset,
        Parseval,
        PlasticityInjection,
        ReDo,
        ReGraMa,
        SelectiveWeightReset,
        SelfNormalizedReset,
        ShrinkAndPerturb,
        SpectralRegularisation,
        WeightClipping,
        WeightNoise,
    )
    from pliant.monitor import (
        Alarm,
        CSVWriter,
        JSONLWriter,
        MLflowWriter,
        Monitor,
        TensorBoardWriter,
        WandbWriter,
        monitor,
    )
    from pliant.probe import LiveTwin, ProbeResult, live_twin, probe
    from pliant.saving import LoadReport
    from pliant.units import UnitGraph, UnitGroup, find_units
    from pliant.units.declare import declare_units
    from pliant.units.verify import verify

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 (grouped by purpose)
    # what the units are
    "find_units",
    "declare_units",
    "verify",
    "UnitGraph",
    "UnitGroup",
    # measuring
    "monitor",
    "Monitor",
    "Alarm",
    "CSVWriter",
    "JSONLWriter",
    "MLflowWriter",
    "TensorBoardWriter",
    "WandbWriter",
    "fresh_twin",
    "probe",
    "diagnose",
    "Diagnosis",
    "ProbeResult",
    "live_twin",
    "LiveTwin",
    # acting
    "attach",
    "Handle",
    "LoadReport",
    "EditLog",
    "LoggedEvent",
    "read_edits",
    "follow_resets",
    "AdaptiveNormalization",
    "ContinualBackprop",
    "FIRE",
    "ExperienceReplay",
    "FreshStart",
    "L2",
    "HareAndTortoise",
    "InsertDropout",
    "InsertNormalization",
    "L2EffectiveRank",
    "L2Init",
    "LayerReset",
    "NormalizeAndProject",
    "OptimizerReset",
    "Parseval",
    "PlasticityInjection",
    "ReDo",
    "ReGraMa",
    "SelectiveWeightReset",
    "SelfNormalizedReset",
    "ShrinkAndPerturb",
    "SpectralRegularisation",
    "GradientNoise",
    "WeightClipping",
    "WeightNoise",
    "CChain",
    "FeatureNorm",
    # errors
    "PliantError",
    "UnsupportedError",
    "UnsupportedOp",
    "NotYetSupported",
    "IllegalConfiguration",
    "NoEffect",
    "NoEffectWarning",
    "RecordError",
]

# Names are imported when they are first used, so that the command line's help and the reports need no PyTorch.
_MODULES = (
    *("checkpoint", "errors", "insertion", "interventions", "lora", "manifolds", "metrics", "nn", "observation"),
    *("optim", "records", "report", "spectrum", "statistics", "stats", "surgery", "tokens", "units"),
)
_SOURCES = {
    "EditLog": "pliant.edit_log",
    "Handle": "pliant.handle",
    "LoadReport": "pliant.saving",
    "LoggedEvent": "pliant.edit_log",
    "read_edits": "pliant.edit_log",
    "attach": "pliant.attach",
    "follow_resets": "pliant.averages",
    "IllegalConfiguration": "pliant.errors",
    "NoEffect": "pliant.errors",
    "NoEffectWarning": "pliant.errors",
    "NotYetSupported": "pliant.errors",
    "PliantError": "pliant.errors",
    "RecordError": "pliant.errors",
    "UnsupportedError": "pliant.errors",
    "UnsupportedOp": "pliant.errors",
    "FIRE": "pliant.interventions",
    "L2": "pliant.interventions",
    "AdaptiveNormalization": "pliant.interventions",
    "CChain": "pliant.interventions",
    "FeatureNorm": "pliant.interventions",
    "GradientNoise": "pliant.interventions",
    "L2EffectiveRank": "pliant.interventions",
    "L2Init": "pliant.interventions",
    "Parseval": "pliant.interventions",
    "SpectralRegularisation": "pliant.interventions",
    "WeightClipping": "pliant.interventions",
    "WeightNoise": "pliant.interventions",
    "ContinualBackprop": "pliant.interventions",
    "ExperienceReplay": "pliant.interventions",
    "FreshStart": "pliant.interventions",
    "HareAndTortoise": "pliant.interventions",
    "InsertDropout": "pliant.interventions",
    "InsertNormalization": "pliant.interventions",
    "LayerReset": "pliant.interventions",
    "NormalizeAndProject": "pliant.interventions",
    "OptimizerReset": "pliant.interventions",
    "PlasticityInjection": "pliant.interventions",
    "ReDo": "pliant.interventions",
    "ReGraMa": "pliant.interventions",
    "SelectiveWeightReset": "pliant.interventions",
    "SelfNormalizedReset": "pliant.interventions",
    "ShrinkAndPerturb": "pliant.interventions",
    "Alarm": "pliant.monitor",
    "CSVWriter": "pliant.monitor",
    "JSONLWriter": "pliant.monitor",
    "MLflowWriter": "pliant.monitor",
    "Monitor": "pliant.monitor",
    "TensorBoardWriter": "pliant.monitor",
    "WandbWriter": "pliant.monitor",
    "monitor": "pliant.monitor",
    "fresh_twin": "pliant.fresh",
    "diagnose": "pliant.diagnosis",
    "Diagnosis": "pliant.diagnosis",
    "LiveTwin": "pliant.probe",
    "live_twin": "pliant.probe",
    "ProbeResult": "pliant.probe",
    "probe": "pliant.probe",
    "UnitGraph": "pliant.units",
    "UnitGroup": "pliant.units",
    "declare_units": "pliant.units.declare",
    "find_units": "pliant.units",
    "verify": "pliant.units.verify",
}


_INTEGRATIONS = ("sb3", "huggingface", "lightning")  # each needs its framework, so dir() does not name them


def _public(name: str) -> Any:
    if name in _SOURCES:
        return getattr(import_module(_SOURCES[name]), name)
    if name in _INTEGRATIONS:
        return import_module("pliant.integrations").integration(name)
    if name in _MODULES:
        return import_module(f"pliant.{name}")
    raise AttributeError(f"module 'pliant' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps ``pliant.attach`` the function: importing the module ``pliant.attach`` would put itself in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _SOURCES.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)

    if not TYPE_CHECKING:  # a type checker reads the imports above and reports names that do not exist

        def __getattr__(self, name: str) -> Any:
            value = _public(name)
            setattr(self, name, value)
            return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__, *_MODULES})


sys.modules[__name__].__class__ = _Package
