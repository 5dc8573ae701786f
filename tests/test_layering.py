"""Imports run downwards, records and reports need little, and help needs almost nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pliant

PACKAGE = Path(pliant.__file__).parent

# Lowest first. A module may import from its own layer's package and from every layer below; two packages of one
# layer do not know each other.
LAYERS: list[set[str]] = [
    {"errors", "devices", "quiet", "intervals", "trainability", "isolation"},
    {"sharded"},
    {"records", "statistics", "units", "optimizer_state", "checkpoint", "surgery", "nn", "search"},
    {"mechanisms", "metrics", "stats", "events", "write", "optim", "insertion"},
    {"limit"},
    {"edit_tensors", "forward", "edit_log"},
    {"edit", "fresh", "observation", "spectrum"},
    {"interventions", "manifolds"},
    {"agents", "reminders", "saving", "schedule", "wiring"},
    {"rounds"},
    {"resume"},
    {"lasting"},
    {"handle"},
    {"attach", "averages", "monitor"},
    {"probe", "lora", "tokens"},
    {"bench", "report"},
    {"diagnosis"},
    {"integrations"},
    {"commands"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SIDEWAYS = {
    ("monitor", "attach"),  # a monitor listens with the same hooks and clock
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(name: str) -> str:
    """``pliant.units.export`` is of ``units``."""
    return name.split(".")[1] if "." in name else ""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, lazy: bool = True) -> set[str]:
    """All modules that a file imports, those inside functions included; what only a type checker reads is not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.orelse:
                visit(child, inside)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = True
        if lazy or not inside:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                found.add(node.module or "")
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree, False)
    return found


def test_every_part_has_a_layer():
    parts = {part_of(module_name(path)) for path in MODULES} - {""}
    assert parts == set(LEVEL), "give a new part of the package its place in LAYERS"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: module_name(path))
def test_imports_run_downwards(path: Path):
    mine = part_of(module_name(path))
    if not mine:  # pliant/__init__.py only names what is public
        return
    for name in imports_of(path):
        if not name.startswith("pliant."):
            continue
        theirs = part_of(name)
        if theirs not in LEVEL or theirs == mine:  # a name such as pliant.__version__, or the same part
            continue
        assert LEVEL[theirs] < LEVEL[mine] or (mine, theirs) in SIDEWAYS, f"{module_name(path)} imports {name}"


# Folders that need an extra, which everything else does without.
EXTRAS = {PACKAGE / "bench" / "rl": {"gymnasium", "mujoco", "stable_baselines3"}}


def outside(path: Path) -> set[str]:
    """Top-level packages from neither the standard library nor here, nor from the extra that the folder is for."""
    tops = {name.split(".")[0] for name in imports_of(path)}
    own = set().union(*(extra for folder, extra in EXTRAS.items() if folder in path.parents))
    return {name for name in tops - own if name not in sys.stdlib_module_names and name != "pliant"}


def test_records_need_numpy_only():
    for path in (PACKAGE / "records").glob("*.py"):
        assert outside(path) <= {"numpy"}, path
    assert outside(PACKAGE / "errors.py") == set()


def test_statistics_need_numpy_only():
    for path in (PACKAGE / "statistics").glob("*.py"):
        assert outside(path) <= {"numpy"}, path


def test_metrics_need_torch_only():
    for path in (PACKAGE / "metrics").glob("*.py"):
        assert outside(path) <= {"torch"}, path
        own = {part_of(name) for name in imports_of(path) if name.startswith("pliant.")}
        assert own <= {"metrics", "errors", "devices"}, path


def test_reports_read_records_and_nothing_else():
    for path in (PACKAGE / "report").glob("*.py"):
        assert outside(path) <= {"numpy", "rich"}, path


FRAMEWORKS = {
    "sb3": {"stable_baselines3", "gymnasium"},
    "huggingface": {"transformers", "accelerate"},
    "lightning": {"lightning"},
}


def test_only_these_packages_are_imported_at_all():
    core = [path for path in MODULES if part_of(module_name(path)) != "integrations"]
    used = set().union(*(outside(path) for path in core))
    assert used == {"torch", "numpy", "rich", "tyro"}, "the core has four dependencies"


def test_an_integration_imports_its_own_framework_only():
    """A file is of the framework whose name it begins with: ``sb3.py``, ``sb3_networks.py``."""
    for path in (PACKAGE / "integrations").glob("*.py"):
        frameworks = [of for name, of in FRAMEWORKS.items() if path.stem.startswith(name)]
        assert outside(path) <= {"torch", "numpy"}.union(*frameworks), path


@pytest.mark.parametrize(
    "code",
    [
        "import pliant; pliant.PliantError; pliant.__version__",
        "import pliant.report",
        "from pliant.cli import main; main(['run', '--help']); main(['--help']); main(['demoo'])",
        "from pliant.cli import main; main(['list', 'metrics']); main(['report', 'no such folder'])",
    ],
)
def test_help_and_reports_come_without_torch(code: str):
    check = "import sys; heavy = {'torch', 'scipy', 'pandas'} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_function_keeps_its_name_when_its_module_is_imported():
    code = "import pliant.attach, pliant.monitor, pliant; assert callable(pliant.attach) and callable(pliant.monitor)"
    subprocess.run([sys.executable, "-c", code], check=True)
