"""What each stream's definition says, checked on its tasks by other means than the stream's own."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from pliant.bench.data.images import load_images
from pliant.bench.data.text import NUM_SYMBOLS, encode
from pliant.bench.presets import PRESETS
from pliant.bench.streams import (
    CharacterDrift,
    ClassIncremental,
    ClickThrough,
    ContinualImageNet,
    ContinualTinyImageNet,
    DataGrowth,
    DayAndWeather,
    FivePlusOne,
    InputPermuted,
    IterableStream,
    LabelNoise,
    LabelPermuted,
    RandomLabelImages,
    Recurring,
    RegimeSwitching,
    SlowlyChangingRegression,
    SmoothDrift,
)
from pliant.bench.streams.augment import FlipCropRotate
from pliant.bench.streams.corruptions import WEATHER, darken
from pliant.errors import IllegalConfiguration


def rows(inputs: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, inputs.flatten(1).tolist()))


def true_labels() -> dict[tuple[float, ...], int]:
    """From the pixels of a training digit, in 0..1, to its label."""
    digits = load_images("digits")
    images = (digits.train_images.flatten(1).float() / 16).tolist()
    return dict(zip(map(tuple, images), digits.train_labels.tolist(), strict=True))


# ------------------------------------------------------------------------------------------- images and permutations


def test_input_permuted_is_one_permutation_for_all_images_of_a_task():
    stream = InputPermuted(num_examples=300, num_test=50)
    task = stream.task(3, 1)
    digits = load_images("digits")
    test = digits.test_images[:50].flatten(1).float() / 16
    # The permutation that the training part went through is the one of the test part: found by its columns.
    columns = {tuple(column.tolist()) for column in test.T}
    assert {tuple(column.tolist()) for column in task.test_inputs.T} == columns
    assert torch.equal(task.test_targets, digits.test_labels[:50])
    assert {tuple(row) for row in task.inputs.sort(1).values.tolist()} <= {tuple(sorted(row)) for row in true_labels()}
    assert not torch.equal(stream.task(4, 1).test_inputs, task.test_inputs)


def test_input_permuted_keeps_its_images_only_if_asked():
    same = InputPermuted(num_examples=60, same_images=True)
    assert rows(same.task(0, 2).inputs.sort(1).values) == rows(same.task(9, 2).inputs.sort(1).values)
    assert rows(same.task(0, 2).inputs.sort(1).values) != rows(same.task(0, 3).inputs.sort(1).values)
    new = InputPermuted(num_examples=60)
    assert rows(new.task(0, 2).inputs.sort(1).values) != rows(new.task(9, 2).inputs.sort(1).values)


def test_random_labels_are_dealt_out_anew_over_the_same_images():
    stream = RandomLabelImages(num_examples=400)
    first, later = stream.task(0, 1), stream.task(7, 1)
    assert torch.equal(first.inputs, later.inputs)
    assert torch.equal(first.targets.bincount(), later.targets.bincount())
    agree = (first.targets == later.targets).float().mean()
    assert agree < 0.2  # a tenth by chance


def test_label_permuted_renames_classes():
    stream = LabelPermuted(num_examples=1200, num_test=597)
    task, digits = stream.task(5, 0), load_images("digits")
    renamed = {(int(a), int(b)) for a, b in zip(digits.test_labels, task.test_targets, strict=True)}
    assert len(renamed) == 10  # one new name for each, and no name twice
    assert len({new for _, new in renamed}) == 10
    assert {new for old, new in renamed if old == new} != set(range(10))
    known = {
        row: int(label)
        for row, label in zip(
            map(tuple, (digits.train_images.flatten(1).float() / 16).tolist()), digits.train_labels, strict=True
        )
    }
    assert {(known[tuple(x)], int(y)) for x, y in zip(task.inputs.tolist(), task.targets, strict=True)} == renamed


def test_five_plus_one_uses_no_class_twice():
    stream = FivePlusOne(dataset="cifar100", flat=False)
    seen = [label for index in range(stream.max_tasks) for label in stream.classes(index, 4)]
    assert stream.max_tasks == 32
    assert len(seen) == len(set(seen)) == 96
    assert [len(stream.classes(index, 4)) for index in range(4)] == [5, 1, 5, 1]
    again = FivePlusOne(per_class=20, reuse=True)
    assert again.max_tasks is None
    assert set(again.classes(0, 0)).isdisjoint(again.classes(1, 0))
    task = again.task(3, 0)
    assert task.targets.unique().tolist() == list(again.classes(3, 0))
    assert task.num_epochs == 20
    with pytest.raises(IllegalConfiguration, match="per_class must be in 1"):
        FivePlusOne()


# --------------------------------------------------------------------------------------------------------- classes


def test_continual_imagenet_has_every_class_once_in_a_round():
    stream = ContinualImageNet(reshuffle=False)
    rounds = [[label for index in range(5 * k, 5 * k + 5) for label in stream.classes(index, 0)] for k in range(2)]
    assert sorted(rounds[0]) == list(range(10))
    assert rounds[0] == rounds[1]
    other = ContinualImageNet()
    rounds = [[label for index in range(5 * k, 5 * k + 5) for label in other.classes(index, 0)] for k in range(3)]
    assert all(sorted(labels) == list(range(10)) for labels in rounds)
    assert len({tuple(labels) for labels in rounds}) == 3
    assert [other.task(index, 0).reset_head for index in range(3)] == [False, True, True]
    task = other.task(2, 0)
    assert task.targets.bincount().tolist() == [100, 100]
    assert task.test_targets.bincount().tolist() == [40, 40]
    digits = load_images("digits")
    first = digits.train_images[digits.of_class(other.classes(2, 0)[0])[:100]]
    assert torch.equal(task.inputs[:100], (first.float() / 16 - 0.5) / 0.5)


def test_classes_come_and_stay():
    stream = ClassIncremental(classes_per_task=3, num_valid=7)
    tasks = [stream.task(index, 2) for index in range(4)]
    assert [len(task.active_outputs) for task in tasks] == [3, 6, 9, 10]
    assert all(set(a.active_outputs) < set(b.active_outputs) for a, b in pairwise(tasks))
    last = tasks[-1]
    assert last.valid_targets.bincount().tolist() == [7] * 10
    assert last.targets.bincount().tolist() == [80] * 10
    smallest = int(load_images("digits").test_labels.bincount().min())
    assert last.test_targets.bincount().tolist() == [smallest] * 10
    assert not set(rows(last.inputs)) & set(rows(last.valid_inputs))
    digits = load_images("digits")
    assert torch.equal(
        last.valid_inputs[:7], digits.train_images[digits.of_class(int(last.valid_targets[0]))[:7]].flatten(1) / 16
    )


def test_tiny_imagenet_chunks_stay_or_go():
    full, limited = ContinualTinyImageNet(), ContinualTinyImageNet(access="limited")
    assert full.max_tasks == 5
    assert [len(full.classes(index, 1)) for index in range(5)] == [2, 4, 6, 8, 10]
    assert full.classes(4, 1) == tuple(k for index in range(5) for k in limited.classes(index, 1))
    assert limited.task(2, 1).targets.unique().tolist() == sorted(limited.classes(2, 1))
    assert full.num_classes == 10


# --------------------------------------------------------------------------------------------------- growth and noise


def test_data_grows_or_comes_in_parts():
    full = DataGrowth(fractions=(0.1, 0.5, 1.0), num_epochs=(7,))
    parts = [rows(full.task(index, 0).inputs) for index in range(3)]
    assert [len(part) for part in parts] == [120, 600, 1200]
    assert set(parts[0]) <= set(parts[1]) <= set(parts[2])
    limited = DataGrowth(fractions=(0.1, 0.5, 1.0), num_epochs=(3, 2, 1), access="limited")
    assert sorted(row for index in range(3) for row in rows(limited.task(index, 0).inputs)) == parts[2]
    assert [limited.task(index, 0).num_epochs for index in range(3)] == [3, 2, 1]
    for wrong in ({"fractions": (0.5, 0.5)}, {"fractions": (0.5, 1.2)}, {"fractions": ()}, {"num_epochs": (1, 2, 3)}):
        with pytest.raises(IllegalConfiguration, match=r"fractions|num_epochs"):
            DataGrowth(**{"num_epochs": (1,), **wrong})


def test_label_noise_is_as_large_as_said_and_never_true():
    stream = LabelNoise(noise=(0.5, 0.25, 0.0))
    digits = load_images("digits")
    truth = {
        row: int(y)
        for row, y in zip(map(tuple, (digits.train_images.flatten(1) / 16).tolist()), digits.train_labels, strict=True)
    }
    for index, share in enumerate(stream.noise):
        task = stream.task(index, 0)
        assert len(task.targets) == 400 * (index + 1)
        wrong = [int(y) != truth[tuple(x)] for x, y in zip(task.inputs.tolist(), task.targets, strict=True)]
        assert sum(wrong) == int(share * len(wrong))


# ---------------------------------------------------------------------------------------------------- concepts in turn


def test_recurring_concepts_come_back():
    stream = Recurring(num_concepts=3, num_examples=30, num_test=20)
    tests = [stream.task(index, 0).test_inputs for index in range(6)]
    assert all(torch.equal(tests[k], tests[k + 3]) for k in range(3))
    assert not torch.equal(tests[0], tests[1])
    assert rows(stream.task(0, 0).inputs) != rows(stream.task(3, 0).inputs)  # other images of the same concept
    random = Recurring(order="random", num_concepts=4)
    order = [random.concept(index, 7) for index in range(1100)]  # over the border of a block of draws
    assert all(a != b for a, b in pairwise(order))
    assert np.bincount(order, minlength=4).min() > 220


def test_smooth_drift_mixes_two_concepts_in_the_share_of_its_phase():
    stream = SmoothDrift(change="labels", period=4, num_examples=1200)
    digits = load_images("digits")
    truth = {
        row: int(y)
        for row, y in zip(map(tuple, (digits.train_images.flatten(1) / 16).tolist()), digits.train_labels, strict=True)
    }

    def names(index: int) -> np.ndarray:
        task = stream.task(index, 0)
        table = np.zeros((10, 10))
        for x, y in zip(task.inputs.tolist(), task.targets.tolist(), strict=True):
            table[truth[tuple(x)], y] += 1
        return table / table.sum(1, keepdims=True)

    old, new = names(0), names(4)
    assert set(np.unique(old)) == set(np.unique(new)) == {0.0, 1.0}
    for phase in (1, 2, 3):
        share = phase / 4
        mixed = names(phase)
        assert np.abs(mixed - ((1 - share) * old + share * new)).max() < 0.15
    assert np.abs(names(8) - new).max() > 0.5


def test_noon_is_clear_midnight_is_dark():
    stream = DayAndWeather(weather=("clear",), day_length=4, num_examples=200)
    light = [stream.conditions(index, 0)[0] for index in range(5)]
    assert light == pytest.approx([1, 0.5, 0, 0.5, 1])
    assert {tuple(row) for row in stream.task(0, 0).inputs.tolist()} <= set(true_labels())
    means = [float(stream.task(index, 0).inputs.mean()) for index in range(3)]
    assert means[0] > 1.3 * means[1] > 1.3 * 1.3 * means[2]
    assert len({DayAndWeather().conditions(8 * day, 0)[1] for day in range(40)}) == 5


@pytest.mark.parametrize("kind", WEATHER)
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 3, 32, 32)])
def test_weather_is_nothing_at_severity_0_and_grows(kind, shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    seen = [WEATHER[kind](images, severity, np.random.default_rng(0)) for severity in (0.0, 0.5, 1.0)]
    assert torch.allclose(seen[0], images)
    change = [float((now - images).abs().mean()) for now in seen]
    assert kind == "clear" or 0 < change[1] < change[2]
    assert all(0 <= float(now.min()) <= float(now.max()) <= 1 for now in seen)
    assert torch.equal(darken(images, 1.0, np.random.default_rng(0)), images)


# -------------------------------------------------------------------------------------------------- generated problems


def test_one_slow_bit_flips_at_each_task_for_ever():
    stream = SlowlyChangingRegression(task_length=40)
    bits = [stream.slow_bits(index, 3) for index in (0, 1, 2, 1023, 1024, 1025)]
    for before, after in ((0, 1), (1, 2), (3, 4), (4, 5)):
        assert np.abs(bits[before] - bits[after]).sum() == 1
    task = stream.task(2, 3)
    assert np.array_equal(task.inputs[:, :15].numpy(), np.tile(bits[2], (40, 1)))
    assert len(task.inputs[:, 15:].unique(dim=0)) > 20
    redrawn = SlowlyChangingRegression(change="all")
    assert np.abs(redrawn.slow_bits(5, 3) - redrawn.slow_bits(6, 3)).sum() > 1


@pytest.mark.parametrize("threshold", ["text", "code"])
def test_target_units_fire_when_enough_inputs_match(threshold):
    """The text: a share beta of the m + 1 inputs, the bias one of them, must match the signs of the weights."""
    from pliant.bench.streams.base import generator

    stream = SlowlyChangingRegression(task_length=60, num_target_units=30, threshold=threshold)
    task = stream.task(4, 1)
    rng = generator("slowly_changing_regression target", 1)
    weight, bias, out, shift = (2 * rng.integers(0, 2, shape) - 1 for shape in ((30, 20), 30, 30, ()))
    for x, y in zip(task.inputs.numpy(), task.targets[:, 0].tolist(), strict=True):
        total = int(shift)
        for unit in range(30):
            matches = sum(
                int(bit == (sign > 0)) for bit, sign in zip([*x, 1], [*weight[unit], bias[unit]], strict=True)
            )
            # Released code: fires above 14.2 for a bias of 1 and above 16.2 for a bias of -1, in matches.
            needed = 0.7 * 21 if threshold == "text" else 0.7 * 21 - (0.5 if bias[unit] > 0 else -1.5)
            total += int(out[unit]) * (matches > needed)
        assert y == total


def test_regimes_switch_stay_and_recur():
    stream = RegimeSwitching(num_examples=64, num_test=10, stay=0.5)
    regimes = [stream.regime(index, 0) for index in range(1100)]
    stays = np.mean([a == b for a, b in pairwise(regimes)])
    assert 0.42 < stays < 0.58
    assert set(regimes) == set(range(6))
    new = RegimeSwitching(num_regimes=0, stay=0.5)
    ids = [new.regime(index, 0) for index in range(40)]
    assert ids == sorted(ids)
    assert ids[-1] > 10


def test_windows_are_followed_by_their_targets():
    stream = RegimeSwitching(num_examples=50, num_test=20, horizon=2, noise=0.1)
    task = stream.task(3, 0)
    assert torch.equal(task.inputs[1:, :-1], task.inputs[:-1, 1:])
    assert torch.equal(task.targets[:-2], task.inputs[2:, -1])
    flat = RegimeSwitching(num_examples=50, num_test=20, horizon=2, noise=0.1, flat=True).task(3, 0)
    assert torch.equal(flat.inputs, task.inputs.flatten(1))
    assert 0.2 < float(task.targets.std()) < 3


def test_a_regime_is_forecast_by_what_was_learnt_in_it_alone():
    """Least squares on the window: good within a regime, also in another stretch of it, and bad in other ones."""
    stream = RegimeSwitching(num_examples=600, num_test=200, noise=0.1, num_regimes=3, stay=0.0)

    def fit(task):
        design = np.c_[task.inputs.flatten(1).numpy(), np.ones(len(task.inputs))]
        return np.linalg.lstsq(design, task.targets.numpy(), rcond=None)[0]

    def error(task, weights):
        design = np.c_[task.test_inputs.flatten(1).numpy(), np.ones(len(task.test_inputs))]
        return float(((design @ weights - task.test_targets.numpy()) ** 2).mean() / task.test_targets.var())

    regimes = [stream.regime(index, 0) for index in range(12)]
    again = regimes.index(regimes[0], 1)
    weights = fit(stream.task(0, 0))
    assert error(stream.task(0, 0), weights) < 0.5
    assert error(stream.task(again, 0), weights) < 0.5
    assert error(stream.task(1, 0), weights) > 0.7


def test_vocabulary_grows_and_old_entries_make_room():
    stream = ClickThrough(vocabulary=20, growth=5, capacity=40, num_examples=4000, num_fields=3)
    for index in (0, 2, 4, 9):
        task = stream.task(index, 0)
        for field in range(3):
            ids = task.inputs[:, field]
            assert int(ids.min()) >= field * 40
            assert int(ids.max()) < (field + 1) * 40
            assert len(ids.unique()) <= min(40, stream.num_entries(index))
    assert len(stream.task(0, 0).inputs[:, 0].unique()) == 20
    assert len(stream.task(9, 0).inputs[:, 0].unique()) > 35


def test_tastes_can_be_learnt_and_turn():
    stream = ClickThrough(num_fields=1, vocabulary=30, growth=0, num_examples=20000, period=40, zipf=0.0)

    def rates(index: int) -> np.ndarray:
        task = stream.task(index, 0)
        clicks = np.bincount(task.inputs[:, 0], task.targets[:, 0].numpy(), minlength=30)[:30]
        return clicks / np.bincount(task.inputs[:, 0], minlength=30)[:30]

    now, soon, opposite, back = rates(0), rates(1), rates(20), rates(40)
    assert now.std() > 0.1
    assert np.corrcoef(now, soon)[0, 1] > 0.9
    assert np.corrcoef(now, back)[0, 1] > 0.9
    assert np.corrcoef(now, opposite)[0, 1] < -0.5


def test_ciphers_permute_the_characters_that_occur():
    stream = CharacterDrift(num_characters=4000, num_examples=300, num_test=5)
    first, later = stream.task(0, 0), stream.task(1, 0)
    assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])
    used = [set(task.inputs.unique().tolist()) | set(task.targets.unique().tolist()) for task in (first, later)]
    assert used[0] == used[1]
    counts = [torch.bincount(task.inputs.flatten(), minlength=NUM_SYMBOLS).sort().values for task in (first, later)]
    assert float((counts[0] - counts[1]).abs().sum()) < 0.15 * float(counts[0].sum())
    assert first.inputs.flatten().mode().values != later.inputs.flatten().mode().values


def test_texts_change_and_words_stay_words(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 40)
    (tmp_path / "b.txt").write_text("\u00e9t\u00e9 comme hiver, il dort! " * 40)
    texts = CharacterDrift(text="files", data_dir=str(tmp_path), change="texts", context=20)
    texts.prepare()
    ids = [set(texts.task(index, 0).inputs.unique().tolist()) for index in range(3)]
    assert ids[0] == ids[2] == set(encode("the cat sat on the mat. ").tolist())
    assert NUM_SYMBOLS - 1 in ids[1]
    words = CharacterDrift(text="files", data_dir=str(tmp_path / "a.txt"), change="words", context=20)
    seen = {tuple(words.task(index, 0).inputs.flatten().bincount(minlength=NUM_SYMBOLS).tolist()) for index in range(4)}
    assert len(seen) > 1
    with pytest.raises(IllegalConfiguration, match="too short"):
        CharacterDrift(text="files", data_dir=str(tmp_path), change="texts", context=100).prepare()


# --------------------------------------------------------------------------------------------- published presets, sizes


@pytest.mark.parametrize(
    ("stream", "preset", "num_tasks", "num_steps"),
    [
        ("input_permuted", "paper", 200, 5000),
        ("input_permuted", "kumar", 500, 625),
        ("slowly_changing_regression", "paper", 300, 10000),
        ("slowly_changing_regression", "redraw", 100, 10000),
        ("continual_imagenet", "paper", 5000, 3000),
        ("continual_imagenet", "kumar", 500, 120),
        ("class_incremental", "paper", 20, 5000),
        ("random_label_images", "paper", 50, 30000),
        ("random_label_images", "paper_cifar", 50, 30000),
        ("label_permuted", "paper", 400, 2500),
        ("five_plus_one", "paper", 31, 628),
        ("data_growth", "paper", 2, 20000),
        ("continual_tiny_imagenet", "paper", 20, 2000),
        ("label_noise", "paper", 10, 2000),
    ],
)
def test_published_sizes(stream, preset, num_tasks, num_steps):
    """Updates of the first task: passes times batches of a pass, from the published numbers alone."""
    settings = PRESETS[stream][preset]
    options = settings["stream"]
    examples = (
        {
            "continual_imagenet": 1200,
            "class_incremental": 5 * 450,
            "random_label_images": 1200,
            "five_plus_one": 5 * 500,
            "data_growth": 5000,
            "continual_tiny_imagenet": 10 * 500,
            "label_noise": 5000,
        }.get(stream)
        or options.get("num_examples")
        or options["task_length"]
    )
    from pliant.bench.streams import STREAMS

    built = STREAMS[stream](**{key: tuple(v) if isinstance(v, list) else v for key, v in options.items()})
    passes = getattr(built, "hard_epochs", None) or getattr(built, "num_epochs", 1)
    passes = passes[0] if isinstance(passes, tuple) else passes
    assert settings["num_tasks"] == num_tasks
    assert passes * math.ceil(examples / built.batch_size) == num_steps


# ---------------------------------------------------------------------------------------------------------- augment


def test_flip_crop_and_turn_do_what_they_say():
    images = torch.arange(2 * 64, dtype=torch.float32).reshape(2, 1, 8, 8).repeat(200, 1, 1, 1)
    flipped = FlipCropRotate(pad=0, degrees=0.0)(images, np.random.default_rng(0))
    changed = (flipped != images).flatten(1).any(1)
    assert 140 < int(changed.sum()) < 260
    assert torch.equal(flipped[changed], images[changed].flip(-1))
    shifted = FlipCropRotate(pad=2, mode="constant", degrees=0.0)(images + 1, np.random.default_rng(0))
    zero_rows = (shifted == 0).all(-1).sum((1, 2))
    assert set(zero_rows.tolist()) == {0, 1, 2}
    reflected = FlipCropRotate(pad=2, degrees=0.0)(images + 1, np.random.default_rng(0))
    assert float(reflected.min()) >= 1
    # A straight line through the middle, turned: its angle is in 0 to 15 degrees, counter-clockwise, uniformly.
    line = torch.zeros(60, 1, 65, 65)
    line[:, :, 32] = 1
    turned = FlipCropRotate(pad=0, degrees=15.0)(line, np.random.default_rng(1))
    heights = torch.tensor([float(np.mean(np.flatnonzero(image[0, :, 52].numpy()))) for image in turned])
    angles = torch.rad2deg(torch.atan((32 - heights) / 20))
    assert -0.5 <= float(angles.min()) < 4
    assert 11 < float(angles.max()) <= 15.5


# -------------------------------------------------------------------------------------------------- one's own tasks


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ([(np.ones((3, 2)), np.array([0, 1, 2]))], "0 to 2, outside 0..1"),
        ([(np.ones((3, 2)), np.array([0, 1]))], "differ in length"),
        ([(np.ones((3, 2)), np.array([0.0, 1.0, 1.0]))], "must be whole numbers"),
        ([(np.full((3, 2), np.nan), np.array([0, 1, 1]))], "not finite"),
        ([(np.ones((0, 2)), np.zeros(0, dtype=int))], "at least one example"),
        ([(np.ones((3, 2)),)], "give \\(inputs, targets\\)"),
        ([(np.ones((3, 2)), None)], "must be given"),
        ([], "ends before task 0"),
    ],
)
def test_wrong_tasks_of_ones_own_are_named(monkeypatch, tasks, says):
    import sys
    import types

    module = types.ModuleType("own_tasks")
    module.make = lambda seed: iter(tasks)
    monkeypatch.setitem(sys.modules, "own_tasks", module)
    from pliant.bench.streams import iterable

    iterable._CURSORS.clear()
    with pytest.raises(IllegalConfiguration, match=says):
        IterableStream("own_tasks:make", num_classes=2).task(0, 0)
    with pytest.raises(IllegalConfiguration, match=r"my\.module:function"):
        IterableStream("own_tasks").task(0, 0)
    with pytest.raises(IllegalConfiguration, match="cannot be imported"):
        IterableStream("no_such_module:make").task(0, 0)
