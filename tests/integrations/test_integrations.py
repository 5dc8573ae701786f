"""``pliant.sb3`` and its like: found when they are asked for, and clear where the framework is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pliant
from pliant.integrations import EXTRAS


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_framework_is_named_with_the_extra_that_brings_it(name, monkeypatch):
    package, extra = EXTRAS[name]
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    monkeypatch.delitem(vars(pliant), name, raising=False)
    with pytest.raises(pliant.IllegalConfiguration, match=rf"pliant\.{name} needs {package}.*pliant\[{extra}\]"):
        getattr(pliant, name)


def test_the_names_that_people_may_rely_on():
    pytest.importorskip("stable_baselines3", reason="pliant.sb3 needs it")
    assert set(pliant.sb3.__all__) == {"LOGGED", "AgentDiagnosis", "Protect", "diagnose", "forget", "probe"}


def test_importing_pliant_imports_no_framework():
    code = "import pliant, sys; pliant.attach; dir(pliant); assert not {names} & set(sys.modules)"
    frameworks = {package for package, _ in EXTRAS.values()}
    subprocess.run([sys.executable, "-c", code.replace("{names}", repr(frameworks))], check=True)
