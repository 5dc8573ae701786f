"""Experiments: one configuration, one id; names that do not exist get one line with the nearest valid ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from pliant.bench.experiment import Experiment, Part, method_table, optimizer_table
from pliant.bench.names import snake_case
from pliant.bench.presets import PRESETS
from pliant.errors import IllegalConfiguration

FILES = sorted((Path(__file__).parents[2] / "benchmarks" / "experiments").glob("*.toml"))


def test_defaults_make_no_difference():
    short = Experiment("random_label_digits", num_tasks=3)
    long = Experiment(
        Part("random_label_digits", {"batch_size": 16, "num_epochs": 40}),
        methods=["none"],
        optimizer=("sgd", {"lr": 0.1}),
        model=("mlp", {"hidden": [100, 100, 100]}),
        num_tasks=3,
        label="something else",
    )
    assert short == long
    assert hash(short) == hash(long)
    assert short.id == long.id
    assert short.label == "no protection"
    assert Experiment("random_label_digits", optimizer=("sgd", {"lr": 1})) == Experiment(
        "random_label_digits", optimizer=("sgd", {"lr": 1.0})
    )


def test_every_difference_changes_the_id():
    base = Experiment("random_label_digits", num_tasks=3)
    others = [
        base.replace(num_tasks=4),
        base.replace(stream=("random_label_digits", {"batch_size": 8})),
        base.replace(stream="permuted_digits"),
        base.replace(optimizer=("sgd", {"lr": 0.2})),
        base.replace(optimizer=("adam", {"lr": 0.1})),
        base.replace(model=("mlp", {"hidden": (100, 100)})),
        base.replace(methods=["l2"]),
        base.replace(methods=[("l2", {"strength": 1e-3})]),
        base.replace(methods=["l2", "redo"]),
        base.replace(methods=["redo", "l2"]),
    ]
    assert len({experiment.id for experiment in [base, *others]}) == len(others) + 1


def test_the_whole_configuration_is_json_and_comes_back():
    experiment = Experiment("permuted_digits", methods=["continual_backprop"], num_tasks=3, label="CBP")
    data = json.loads(json.dumps(experiment.to_dict()))
    assert Experiment.from_dict(data) == experiment
    assert Experiment.from_dict(data).id == experiment.id
    assert data["methods"][0]["replacement_rate"] > 0
    assert pickle.loads(pickle.dumps(experiment)) == experiment
    assert experiment.id.startswith("permuted_digits-continual_backprop-")


def test_where_the_data_lies_is_no_part_of_it():
    one = Experiment(("permuted_mnist", {"data_dir": "here"}))
    other = Experiment(("permuted_mnist", {"data_dir": "there"}))
    assert one.id == other.id
    assert one.build_stream().data_dir == "here"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Experiment("random_lable_digits"), "there is no stream 'random_lable_digits'; nearest: random_label"),
        (lambda: Experiment("xyz"), "valid: ant, changing_control, character_drift"),
        (
            lambda: Experiment(("random_label_digits", {"num_epoch": 3})),
            "there is no option of stream random_label_digits 'num_epoch'; nearest: num_epochs",
        ),
        (lambda: Experiment("permuted_digits", methods=["continual_backprob"]), "nearest: continual_backprop"),
        (
            lambda: Experiment("permuted_digits", methods=[("continual_backprop", {"replacment_rate": 1e-3})]),
            "nearest: replacement_rate",
        ),
        (lambda: Experiment("permuted_digits", optimizer="adm"), "nearest: adam"),
        (lambda: Experiment("permuted_digits", optimizer=("sgd", {"lrate": 0.1})), "option of optimizer sgd 'lrate'"),
        (lambda: Experiment("permuted_digits", model="mpl"), "nearest: mlp"),
        (lambda: Experiment("permuted_digits", model=("mlp", {"hiden": [3]})), "nearest: hidden"),
        (lambda: Experiment("permuted_digits", num_tasks=0), "num_tasks must be at least 1"),
        (lambda: Experiment("permuted_digits", optimizer=("sgd", {"lr": -1.0})), "Invalid learning rate"),
        (lambda: Experiment("no.such.module:Class"), "cannot be imported"),
        (lambda: Experiment("stream_zoo:Tyni"), "nearest: Tiny"),
        (lambda: Experiment(("stream_zoo:Tiny", {"num_exmples": 3})), "nearest: num_examples"),
        (lambda: Experiment.from_preset("permuted_digits", "dmo"), "nearest: demo"),
        (lambda: Experiment.from_preset("permuted_dgits", "demo"), "nearest: permuted_digits"),
        (lambda: Experiment.from_preset("permuted_digits", "demo", task=3), "experiment field 'task'"),
    ],
)
def test_what_does_not_exist_gets_one_line(make, says):
    with pytest.raises(IllegalConfiguration) as caught:
        make()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_own_classes_by_module_and_name():
    experiment = Experiment(("stream_zoo:Tiny", {"num_examples": 5}), model=("mlp", {"hidden": [4]}))
    assert experiment.build_stream().num_examples == 5
    assert experiment.id.startswith("tiny-none-")


def test_models_depend_on_their_seed_only():
    experiment = Experiment("permuted_digits")
    state = torch.get_rng_state()
    one = experiment.build_model(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1234)
    again, other = experiment.build_model(3), experiment.build_model(4)
    assert torch.equal(one.head.weight, again.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_method_names():
    assert set(method_table()) >= {"continual_backprop", "redo", "l2", "shrink_and_perturb", "fresh_start"}
    assert "intervention" not in method_table()
    assert {"sgd", "adam", "adamw", "rmsprop"} <= set(optimizer_table())
    assert snake_case("SelfNormalizedResets") == "self_normalized_resets"


def test_paper_preset_is_the_published_problem():
    experiment = Experiment.from_preset("permuted_mnist", "paper")
    assert experiment.num_tasks == 800
    assert experiment.model.options["hidden"] == (2000, 2000, 2000)
    assert experiment.stream.options | {"data_dir": ""} == {
        "data_dir": "",
        "num_examples": 60000,
        "num_epochs": 1,
        "batch_size": 1,
    }
    assert experiment.optimizer == Part("sgd", {"lr": 0.003})
    model = experiment.build_model(0)
    assert sum(p.numel() for p in model.parameters() if p.ndim == 2) == 9_588_000


def test_every_preset_builds():
    for stream, presets in PRESETS.items():
        for preset in presets:
            assert Experiment.from_preset(stream, preset).stream.name == stream


def test_changes_lie_over_the_preset():
    experiment = Experiment.from_preset(
        "random_label_digits", "demo", ["l2"], optimizer={"lr": 0.05}, stream_options={"num_epochs": 2}, num_tasks=7
    )
    assert experiment.optimizer == Part("sgd", {"lr": 0.05})
    assert experiment.stream.options["num_epochs"] == 2
    assert experiment.stream.options["num_examples"] == 128
    assert experiment.num_tasks == 7
    assert experiment.label == "l2"
    other = Experiment.from_preset("random_label_digits", "demo", optimizer={"name": "adam", "lr": 0.001})
    assert other.optimizer == Part("adam", {"lr": 0.001})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_files(path):
    assert Experiment.from_toml(path).num_tasks >= 1


def test_there_are_experiment_files():
    assert FILES


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stream = 3 = 4", "cannot be read"),
        ('stream = "permuted_digits"', "needs stream and preset"),
        ('stream = "permuted_digits"\npreset = "demo"\nlable = "x"', "nearest: label"),
        ('stream = "permuted_digits"\npreset = "demo"\n[[methods]]\nrate = 1', "options with a name"),
        ('stream = "permuted_digits"\npreset = "demo"\n[[methods]]\nname = "l3"', "there is no method 'l3'"),
    ],
)
def test_a_wrong_experiment_file_is_named(tmp_path, text, says):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(IllegalConfiguration, match=r"wrong\.toml") as caught:
        Experiment.from_toml(path)
    assert says in str(caught.value)
