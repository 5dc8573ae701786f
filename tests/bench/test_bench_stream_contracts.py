"""Every stream with every preset that needs no files, and on small files in the original formats: what all promise."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import data_files
import numpy as np
import pytest
import torch

from pliant.bench.experiment import Experiment
from pliant.bench.presets import PRESETS
from pliant.bench.streams import STREAMS, write_folder
from pliant.bench.streams.base import Stream, Task, generator, is_supervised, traits
from pliant.errors import IllegalConfiguration

TENSORS = ("inputs", "targets", "test_inputs", "test_targets", "valid_inputs", "valid_targets")
OWN = {"folder", "iterable"}
EXAMPLES = {name: presets for name, presets in PRESETS.items() if is_supervised(STREAMS[name])}
"""Presets of the streams whose tasks are sets of examples; those of agents have tests of their own."""
NEEDS_FILES = {
    (name, preset)
    for name, presets in EXAMPLES.items()
    for preset, settings in presets.items()
    if traits(STREAMS[name](**settings["stream"])).requires_data
}
CIFAR10 = {"dataset": "cifar10", "subset": 12, "flat": False, "scaling": "channel"}
CIFAR100 = {"dataset": "cifar100", "subset": 8, "flat": False}
FILES = {"dataset": "imagenet32", "num_all": data_files.NUM_FILES, "num_train": 5, "num_test": 3, "image_size": 32}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name} {preset}": (name, settings["stream"])
    for name, presets in EXAMPLES.items()
    for preset, settings in presets.items()
    if (name, preset) not in NEEDS_FILES
}
# What the presets that need files have besides: other sets and layouts, other choices.
CASES |= {
    "input_permuted cifar10": ("input_permuted", {**CIFAR10, "num_examples": 40, "num_test": 20}),
    "input_permuted same": ("input_permuted", {"same_images": True, "num_examples": 40, "num_test": 9}),
    "slowly_changing_regression all": (
        "slowly_changing_regression",
        {"change": "all", "task_length": 50, "threshold": "code", "num_slow": 20},
    ),
    "continual_imagenet files": ("continual_imagenet", FILES),
    "continual_imagenet same order": ("continual_imagenet", {**FILES, "reshuffle": False, "reset_head": False}),
    "continual_tiny_imagenet files": (
        "continual_tiny_imagenet",
        {**FILES, "dataset": "tiny_imagenet", "scaling": "channel", "classes_per_task": 5, "access": "limited"},
    ),
    "continual_tiny_imagenet cifar100": (
        "continual_tiny_imagenet",
        {
            "dataset": "cifar100",
            "subset": 8,
            "num_all": 100,
            "num_train": 8,
            "num_test": 3,
            "image_size": 32,
            "classes_per_task": 5,
            "access": "limited",
        },
    ),
    "class_incremental cifar100": (
        "class_incremental",
        {**CIFAR100, "classes_per_task": 30, "num_train_per_class": 6, "num_valid": 2, "augment": True},
    ),
    "random_label_images cifar10": ("random_label_images", {**CIFAR10, "num_examples": 30, "num_epochs": 2}),
    "label_permuted cifar10": ("label_permuted", {**CIFAR10, "num_examples": 30, "num_test": 10}),
    "five_plus_one cifar100": ("five_plus_one", CIFAR100),
    "data_growth limited": (
        "data_growth",
        {**CIFAR10, "access": "limited", "fractions": (0.25, 0.75, 1.0), "num_epochs": (2,), "num_test": 30},
    ),
    "label_noise augmented": ("label_noise", {**CIFAR10, "noise": (0.5, 0.0), "augment": True, "access": "limited"}),
    "recurring labels": ("recurring", {"change": "labels", "order": "random", "num_examples": 40, "num_test": 20}),
    "smooth_drift labels": ("smooth_drift", {**CIFAR10, "change": "labels", "num_examples": 40, "num_test": 20}),
    "day_and_weather cifar10": ("day_and_weather", {**CIFAR10, "num_examples": 40, "num_test": 20}),
    "regime_switching new": ("regime_switching", {"num_regimes": 0, "num_examples": 30, "horizon": 3, "num_test": 5}),
    "character_drift words": ("character_drift", {"change": "words", "num_characters": 3000}),
    "character_drift texts": ("character_drift", {"change": "texts", "num_characters": 3000, "num_test": 4}),
    "folder": ("folder", {"shuffle_tasks": True}),
    "iterable": ("iterable", {"source": f"{__name__}:my_tasks", "num_classes": 3}),
}


def my_tasks(seed: int):
    """Four tasks, as a user would yield them: tuples of arrays, of tensors, and a whole task."""
    for index in range(4):
        rng = np.random.default_rng((seed, index))
        x, y = rng.standard_normal((10 + index, 6)), rng.integers(0, 3, 10 + index)
        if index % 2:
            yield torch.from_numpy(x), torch.from_numpy(y), x[:3], y[:3]
        elif index:
            yield Task(torch.from_numpy(x).float(), torch.from_numpy(y), 2, 4, (), name="whole")
        else:
            yield x, y


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in data_files.CIFAR_PER_CLASS:
        data_files.write_cifar(folder, name)
    data_files.write_classes(folder / "imagenet32")
    data_files.write_classes(folder / "tiny-imagenet", "classes", np.float32)
    write_folder(my_tasks(0), folder / "mine", num_classes=3, batch_size=4)
    return folder


def build(case: str, files) -> Stream:
    name, options = CASES[case]
    cls = STREAMS[name]
    if "data_dir" in {field.name for field in dataclasses.fields(cls)}:
        options = {**options, "data_dir": str(files / "mine" if name == "folder" else files)}
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def digest(task: Task) -> str:
    sha = hashlib.sha256()
    for name in TENSORS:
        tensor = getattr(task, name)
        sha.update(b"-" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
    sha.update(task.order(0).numpy().tobytes())
    sha.update(repr((task.num_epochs, task.batch_size, task.order_key, task.active_outputs, task.reset_head)).encode())
    return sha.hexdigest()


def places(stream: Stream) -> list[tuple[int, int]]:
    """Some tasks, the last one among them, of two seeds."""
    last = traits(stream).max_tasks
    indices = sorted({0, 1, 5 if last is None else last - 1})
    if type(stream).name == "iterable":
        indices = [0, 1, 3]
    return [(index, seed) for index in indices for seed in (0, 3) if last is None or index < last]


@pytest.mark.parametrize("case", CASES)
def test_same_arguments_same_bytes_whatever_was_asked_before(case, files):
    stream = build(case, files)
    assert isinstance(stream, Stream)
    forwards = {place: digest(stream.task(*place)) for place in places(stream)}
    again = dataclasses.replace(stream)
    for index, seed in reversed(forwards):
        task = again.task(index, seed)
        assert digest(task) == forwards[index, seed], (index, seed)
        for name in TENSORS:  # nobody's copy but the caller's
            if getattr(task, name) is not None:
                getattr(task, name).zero_()
    index, seed = next(iter(forwards))
    assert digest(stream.task(index, seed)) == forwards[index, seed]
    assert len(set(forwards.values())) == len(forwards), "seeds or tasks repeat"


@pytest.mark.parametrize("case", CASES)
def test_sizes_types_and_ranges_are_as_said(case, files):
    stream = build(case, files)
    about = traits(stream)
    largest = 0
    for index, seed in places(stream):
        task = stream.task(index, seed)
        for which in ("", "test_", "valid_"):
            inputs, targets = getattr(task, f"{which}inputs"), getattr(task, f"{which}targets")
            assert (inputs is None) == (targets is None)
            if inputs is None:
                assert which
                continue
            assert tuple(inputs.shape[1:]) == about.input_shape
            assert inputs.dtype == about.input_dtype
            assert len(inputs) == len(targets) > 0
            if inputs.dtype == torch.int64:
                assert 0 <= int(inputs.min()) <= int(inputs.max()) < stream.num_inputs
            else:
                assert torch.isfinite(inputs).all()
            if about.loss == "cross_entropy":
                assert targets.dtype == torch.int64
                assert 0 <= int(targets.min()) <= int(targets.max()) < stream.num_classes
                assert targets.shape[1:] == (about.input_shape if inputs.dtype == torch.int64 else ())
            else:
                assert targets.dtype == torch.float32
                assert targets.shape[1:] == (stream.num_classes,)
                assert torch.isfinite(targets).all()
                assert about.loss == "mse" or set(targets.unique().tolist()) <= {0.0, 1.0}
            if task.active_outputs is not None:
                assert list(task.active_outputs) == sorted(set(task.active_outputs))
                assert set(targets.unique().tolist()) <= set(task.active_outputs)
        assert np.prod(about.input_shape) == stream.num_inputs or about.input_dtype == torch.int64
        assert about.score == {"cross_entropy": "accuracy", "mse": "mse", "binary_cross_entropy": "auc"}[about.loss]
        assert sorted(task.order(0).tolist()) == list(range(len(task.targets)))
        assert not torch.equal(task.order(0), task.order(1))
        assert task.num_steps == task.num_epochs * -(-len(task.targets) // task.batch_size)
        assert not about.measures_past or task.test_inputs is not None
        largest = max(largest, task.num_bytes)
    if type(stream).name not in OWN:
        assert about.task_bytes is not None
        assert largest <= about.task_bytes
        # How many test images a subset has is not known before it is read.
        assert about.task_bytes <= 1.35 * largest or "subset" in CASES[case][1]
    if about.max_tasks is not None:
        with pytest.raises(IllegalConfiguration, match=f"no task {about.max_tasks}"):
            stream.task(about.max_tasks, 0)
    with pytest.raises(IllegalConfiguration, match="no task -1"):
        stream.task(-1, 0)


@pytest.mark.parametrize("case", [case for case, (name, _) in CASES.items() if name != "folder"])
def test_all_seeds_have_tasks_of_one_size(case, files):
    """Otherwise their seeds could not be trained side by side."""
    stream = build(case, files)
    for index in sorted({index for index, _ in places(stream)}):
        shapes = set()
        for seed in (0, 1, 2):
            task = stream.task(index, seed)
            tensors = [getattr(task, name) for name in TENSORS]
            active = None if task.active_outputs is None else len(task.active_outputs)
            shapes.add(
                (*(None if x is None else tuple(x.shape) for x in tensors), task.num_steps, active, task.reset_head)
            )
        assert len(shapes) == 1


@pytest.mark.parametrize("case", ["class_incremental cifar100", "label_noise augmented"])
def test_augmentation_depends_on_task_pass_and_step_alone(case, files):
    task = build(case, files).task(1, 0)
    batch = task.inputs[:6]
    kept = batch.clone()
    first = task.augmented(batch, 2, 3)
    assert torch.equal(batch, kept)
    assert first.shape == batch.shape
    assert first.dtype == batch.dtype
    torch.manual_seed(99)
    assert torch.equal(first, build(case, files).task(1, 0).augmented(batch, 2, 3))
    others = [
        task.augmented(batch, 2, 4),
        task.augmented(batch, 3, 3),
        build(case, files).task(1, 1).augmented(batch, 2, 3),
    ]
    assert not any(torch.equal(first, other) for other in others)
    plain = dataclasses.replace(task, augment=None)
    assert plain.augmented(batch, 2, 3) is batch


def test_presets_build_their_streams_and_say_what_they_need():
    for name, presets in PRESETS.items():
        for preset, settings in presets.items():
            about = traits(STREAMS[name](**settings["stream"]))
            assert about.max_tasks is None or settings["num_tasks"] <= about.max_tasks, (name, preset)
            if preset == "mini" and name != "permuted_mnist":
                assert about.requires_data is None, name
    assert set(PRESETS) | OWN == set(STREAMS)
    assert {name for name, presets in PRESETS.items() if not {"mini", "demo"} & set(presets)} == set()


def test_a_stream_that_ends_is_not_asked_for_more():
    assert Experiment.from_preset("class_incremental", "mini").num_tasks == 5
    with pytest.raises(IllegalConfiguration, match="there are 5 tasks; give num_tasks=5"):
        Experiment.from_preset("class_incremental", "mini", num_tasks=6)


def test_the_bytes_are_frozen(files):
    """A change here changes every number that was made with it: it needs a new name for the stream, not a new hash."""
    got = {case: digest(build(case, files).task(1, 5))[:12] for case in FROZEN}
    assert got == FROZEN


FROZEN: dict[str, str] = {
    "input_permuted mini": "8cf1e08c79b3",
    "input_permuted same": "6521eee6b979",
    "input_permuted cifar10": "fdb6a32b32e9",
    "slowly_changing_regression mini": "4eacc0f0c2ea",
    "slowly_changing_regression all": "ebcda9afd5bc",
    "continual_imagenet mini": "7b6b0e07b0bb",
    "continual_imagenet same order": "ea0db0c38cad",
    "continual_tiny_imagenet mini": "c7a5b0c913c9",
    "class_incremental mini": "091cd0d6caad",
    "class_incremental cifar100": "a734915a2c3d",
    "random_label_images mini": "ddd26ff68d1f",
    "label_permuted mini": "056cf15d7ab6",
    "five_plus_one mini": "1a1565ea6594",
    "five_plus_one cifar100": "d59d1850ea1a",
    "data_growth mini": "8cfb93a584fb",
    "data_growth limited": "1fd5dd1317dd",
    "label_noise mini": "ce30c9fbab98",
    "recurring mini": "43703c99fc55",
    "recurring labels": "7566f0469e09",
    "smooth_drift mini": "193de44247b1",
    "character_drift mini": "bb94d5376156",
    "character_drift words": "cf94975e6b92",
}
# Those that take sines and other functions of the machine's library are not frozen to the bit.


def test_what_a_stream_leaves_unsaid_has_a_default():
    class Bare:
        name = "bare"
        num_inputs = 7
        num_classes = 2

        def task(self, index: int, seed: int) -> Task:
            raise AssertionError

    about = traits(Bare())
    assert (about.loss, about.score, about.series) == ("cross_entropy", "accuracy", "online_accuracy")
    assert about.input_shape == (7,)
    assert about.input_dtype == torch.float32
    assert not about.lower_is_better
    assert about.max_tasks is None

    class Wrong(Bare):
        loss = "hinge"

    with pytest.raises(IllegalConfiguration, match="hinge"):
        traits(Wrong())


def test_purposes_do_not_share_randomness():
    assert generator("a", 1).integers(2**60) != generator("b", 1).integers(2**60)


def test_the_page_of_streams_is_up_to_date(capsys):
    from benchmarks.streams_table import main

    assert main(["--check"]) == 0, capsys.readouterr().out
