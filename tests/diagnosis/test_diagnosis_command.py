"""``pliant diagnose``: exit codes, checkpoints that are never unpickled, errors in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pliant.cli import main
from pliant.commands.checkpoints import read_state
from pliant.errors import IllegalConfiguration

NETS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 6, generator=generator), torch.randint(3, (64,), generator=generator)

def one():
    x, y = batch()
    return x[:1], y[:1]

def copies():
    small = make()
    model = nn.Sequential(nn.Linear(6, 96), nn.ReLU(), nn.Linear(96, 3))
    with torch.no_grad():
        model[0].weight.copy_(small[0].weight.repeat_interleave(3, 0))
        model[0].bias.copy_(small[0].bias.repeat_interleave(3, 0))
        model[2].weight.copy_(small[2].weight.repeat_interleave(3, 1) / 3)
        model[2].bias.copy_(small[2].bias)
    return model

def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)

def loss(output, target):
    return nn.functional.cross_entropy(output, target, label_smoothing=0.1)

def vector(output, target):
    return output.sum(-1)

def broken():
    raise RuntimeError("no data here")
"""
RUN = ["--model", "diagnose_nets:make", "--batch", "diagnose_nets:batch", "--twins", "2"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "diagnose_nets.py").write_text(NETS)
    yield
    sys.modules.pop("diagnose_nets", None)


def network(dead: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    with torch.no_grad():
        model[0].weight[:dead], model[0].bias[:dead] = 0, -1
    return model


@pytest.mark.parametrize(("dead", "code", "severity"), [(0, 0, None), (5, 3, "warning"), (20, 4, "severe")])
def test_exit_codes_say_how_bad_it_is(dead, code, severity, capsys):
    torch.save({"model": network(dead).state_dict(), "epoch": 3, "name": "run"}, "checkpoint.pt")
    more = ["--html", "page.html", "--json", "-"] if dead else []
    assert main(["diagnose", "checkpoint.pt", *RUN, *more]) == code
    said = capsys.readouterr().out
    if dead:
        found = json.loads(said)
        assert (found["severity"], found["findings"][0]["mechanism"]) == (severity, "dead_units")
        assert "Dead units" in Path("page.html").read_text()
    else:
        assert "not plasticity" in said


def test_unknown_has_a_code_of_its_own(capsys):
    torch.save(network().state_dict(), "checkpoint.pt")
    arguments = ["diagnose", "checkpoint.pt", "--model", "diagnose_nets:make", "--batch", "diagnose_nets:one"]
    assert main([*arguments, "--twins", "1", "--json", "found.json"]) == 5
    assert "examples: the batch has 1" in capsys.readouterr().out
    assert json.loads(Path("found.json").read_text())["verdict"] == "unknown"


def test_checkpoints_in_other_forms(capsys):
    model = network(20)
    from safetensors.torch import save_file

    save_file(model.state_dict(), "model.safetensors")
    found = read_state("model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    save_file({"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.zeros(0)}, "other.safetensors")
    assert {name: value.dtype for name, value in read_state("other.safetensors").items()} == {
        "a": torch.bfloat16,
        "b": torch.float32,
    }
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, "ddp.pt")
    for name in ("model.safetensors", "ddp.pt"):
        assert main(["diagnose", name, *RUN, "--loss", "diagnose_nets:loss"]) == 4
    capsys.readouterr()


class Anything:
    """An object that must not be made from a file."""

    made = 0

    def __reduce__(self):
        return (Anything.make, ())

    @staticmethod
    def make() -> None:
        Anything.made += 1


def bad_files():
    yield "nothing.pt", None, "there is no checkpoint nothing.pt"
    yield "objects.pt", {"model": network().state_dict(), "thing": Anything()}, "never loaded"
    yield "module.pt", network(), "never loaded"
    yield "text.pt", b"hello", "no checkpoint that torch.load can read"
    yield "list.pt", [torch.ones(2)], "holds a list, not a state dict"
    yield "keys.pt", {"weights": {"a": 1}, "epoch": 3}, "has no state dict: its keys are 'weights', 'epoch'"
    yield "empty.safetensors", b"", "no whole safetensors file"
    yield "cut.safetensors", (30).to_bytes(8, "little") + b'{"a": {"dtype": "F32"}}       ', "no whole safetensors file"


@pytest.mark.parametrize(("name", "content", "message"), list(bad_files()))
def test_files_that_are_no_checkpoints(name, content, message):
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content is not None:
        torch.save(content, name)
    with pytest.raises(IllegalConfiguration, match=message):
        read_state(name)
    assert not Anything.made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "diagnose_nets:make", "--batch", "diagnose_nets:broken"], "no data here"),
        (["--model", "diagnose_nets:batch", "--batch", "diagnose_nets:batch"], "not a torch.nn.Module"),
        (["--model", "diagnose_nets:none", "--batch", "diagnose_nets:batch"], "none"),
        ([*RUN, "--loss", "diagnose_nets:vector"], "must be a scalar"),
        ([*RUN, "--loss", "hinge"], "there is no loss 'hinge'"),
        ([*RUN, "--html", "no/such/folder.html"], "cannot be written"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, capsys):
    torch.save(network().state_dict(), "checkpoint.pt")
    assert main(["diagnose", "checkpoint.pt", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_checkpoint_of_another_model_is_named(capsys):
    other = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3), nn.Linear(3, 3))
    torch.save(other.state_dict(), "other.pt")
    assert main(["diagnose", "other.pt", *RUN]) == 2
    assert "has besides '3.weight', '3.bias'" in capsys.readouterr().err
    torch.save(nn.Sequential(nn.Linear(6, 31), nn.ReLU(), nn.Linear(31, 3)).state_dict(), "narrow.pt")
    assert main(["diagnose", "narrow.pt", *RUN]) == 2
    assert "'0.weight' has shape (31, 6) there and (32, 6) here, and 2 more differ" in capsys.readouterr().err


def copied() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Every unit three times, trained with moments that differ between the copies."""
    sys.path.insert(0, ".")
    import diagnose_nets

    model = diagnose_nets.copies()
    optimizer, before = diagnose_nets.adam(model), model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    model.load_state_dict(before)
    return model, optimizer


def test_the_optimizer_is_asked_with_the_state_that_it_was_saved_with(capsys):
    model, optimizer = copied()
    run = ["--model", "diagnose_nets:copies", "--batch", "diagnose_nets:batch", "--twins", "1", "--json", "-"]
    told = {}
    for name, content in {"with": {"optimizer": optimizer.state_dict()}, "without": {}}.items():
        torch.save({"model": model.state_dict(), **content}, f"{name}.pt")
        for option in ([], ["--optimizer", "diagnose_nets:adam"]):
            assert main(["diagnose", f"{name}.pt", *run, *option]) in (0, 3, 4)
            said = capsys.readouterr()
            (trap,) = (trap for trap in json.loads(said.out)["traps"] if trap["kind"] == "cloned")
            told[name, bool(option)] = ("state of the optimizer" in trap["leaving"], said.err)
    assert told["with", True] == (True, "")
    assert told["with", False] == told["without", False] == (False, "")
    assert told["without", True][0] is False
    assert "without.pt has no state of an optimizer" in told["without", True][1]


def test_the_state_of_another_optimizer_is_refused(capsys):
    model, optimizer = copied()
    groups = optimizer.state_dict()["param_groups"]
    own = {key: {**entry, "exp_avg": torch.zeros(3)} for key, entry in optimizer.state_dict()["state"].items()}
    states = {
        "state of another optimizer than Adam": {"state": {}, "param_groups": [{**groups[0], "params": [0]}]},
        "'exp_avg' has shape (3,) for a parameter of shape (96, 6)": {"state": own, "param_groups": groups},
    }
    run = ["--model", "diagnose_nets:copies", "--batch", "diagnose_nets:batch"]
    for message, state in states.items():
        torch.save({"model": model.state_dict(), "optimizer": state}, "c.pt")
        assert main(["diagnose", "c.pt", *run, "--optimizer", "diagnose_nets:adam"]) == 2
        assert message in capsys.readouterr().err
    assert main(["diagnose", "c.pt", *run, "--optimizer", "diagnose_nets:make_none"]) == 2
    assert main(["diagnose", "c.pt", *run, "--optimizer", "builtins:type"]) == 2
    assert "builtins:type(model) returned" in capsys.readouterr().err
