"""Streams: the same arguments give the same bytes, whatever was asked before; sizes and splits are what they say."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from pliant.bench.data import mnist
from pliant.bench.data.digits import load_digits
from pliant.bench.streams import STREAMS, PermutedDigits, PermutedMNIST, RandomLabelDigits, StationaryDigits
from pliant.bench.streams.base import Stream
from pliant.bench.streams.permuted_digits import split_digits
from pliant.errors import IllegalConfiguration

FAKE_SIZES = {"train_images": (60, 28, 28), "train_labels": (60,), "test_images": (20, 28, 28), "test_labels": (20,)}


@pytest.fixture
def fake_mnist(tmp_path, monkeypatch):
    """Four small idx files, two of them packed, and the table of checksums that fits them."""
    rng = np.random.default_rng(0)
    for key, shape in FAKE_SIZES.items():
        high = 10 if key.endswith("labels") else 256
        array = rng.integers(0, high, shape).astype(np.uint8)
        content = struct.pack(f">{1 + len(shape)}I", 0x0800 | len(shape), *shape) + array.tobytes()
        name = mnist.FILES[key].name
        if key.startswith("train"):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
        file = mnist.IdxFile(name, shape, hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(mnist.FILES, key, file)
    mnist._load.cache_clear()
    yield tmp_path
    mnist._load.cache_clear()


def digest(task):
    parts = [task.inputs, task.targets, task.order(0), task.order(1), task.test_inputs, task.test_targets]
    sha = hashlib.sha256()
    for part in parts:
        sha.update(b"-" if part is None else part.contiguous().numpy().tobytes())
    return sha.hexdigest()


def streams(folder):
    return [
        RandomLabelDigits(num_examples=40),
        PermutedDigits(num_examples=40),
        StationaryDigits(num_examples=40),
        PermutedMNIST(data_dir=str(folder), num_examples=50),
    ]


def test_same_arguments_same_bytes_in_any_order(fake_mnist):
    for stream in streams(fake_mnist):
        assert isinstance(stream, Stream)
        forwards = [digest(stream.task(index, seed)) for index, seed in ((0, 0), (3, 0), (3, 1), (7, 2))]
        again = dataclasses.replace(stream)
        backwards = [digest(again.task(index, seed)) for index, seed in ((7, 2), (3, 1), (3, 0), (0, 0))]
        assert forwards == backwards[::-1]
        assert len(set(forwards)) == 4, f"{stream.name}: seeds or tasks repeat"


def test_the_bytes_are_frozen():
    """A change here changes every published number: it needs a new name for the stream, not a new hash."""
    got = {stream.name: digest(stream.task(2, 5))[:16] for stream in streams("")[:3]}
    assert got == {
        "random_label_digits": "4cbd200485b1ef2f",
        "permuted_digits": "61cb1fadae4c08af",
        "stationary_digits": "42c94928ad30398f",
    }


def test_sizes_and_types(fake_mnist):
    for stream in streams(fake_mnist):
        task = stream.task(1, 0)
        assert task.inputs.shape == (stream.num_examples, stream.num_inputs)
        assert task.inputs.dtype == torch.float32
        assert task.targets.shape == (stream.num_examples,)
        assert task.targets.dtype == torch.int64
        assert 0 <= int(task.targets.min()) <= int(task.targets.max()) < stream.num_classes
        assert 0 <= float(task.inputs.min()) <= float(task.inputs.max()) <= 1
        for epoch in range(2):
            assert sorted(task.order(epoch).tolist()) == list(range(stream.num_examples))
        assert not torch.equal(task.order(0), task.order(1))
        assert task.num_steps == task.num_epochs * -(-stream.num_examples // task.batch_size)


def test_no_example_twice_in_a_task(fake_mnist):
    for stream in streams(fake_mnist):
        inputs = stream.task(0, 0).inputs
        assert len(torch.unique(inputs, dim=0)) == len(inputs)


@pytest.mark.parametrize("seed", range(3))
def test_training_and_test_digits_are_disjoint(seed):
    train, test = split_digits(seed, 597)
    assert len(train) == 1200
    assert len(test) == 597
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(1797))
    task = StationaryDigits(num_examples=1200).task(0, seed)
    everything = torch.cat([task.inputs, task.test_inputs])
    assert torch.equal(everything.unique(dim=0), load_digits()[0].unique(dim=0))


def test_permuted_digits_permute_pixels_and_keep_labels():
    task = PermutedDigits(num_examples=1200).task(4, 1)
    inputs, targets = load_digits()
    assert torch.equal(task.inputs.sum(1).sort().values, inputs[split_digits(1, 597)[0]].sum(1).sort().values)
    _, test = split_digits(1, 597)
    assert torch.equal(task.test_targets, targets[test])
    assert torch.equal(task.test_inputs.sort(1).values, inputs[test].sort(1).values)
    assert not torch.equal(task.test_inputs, inputs[test])


def test_stationary_digits_change_only_the_order():
    stream = StationaryDigits()
    first, later = stream.task(0, 3), stream.task(9, 3)
    assert torch.equal(first.inputs, later.inputs)
    assert torch.equal(first.targets, later.targets)
    assert not torch.equal(first.order(0), later.order(0))


def test_random_labels_are_balanced_and_say_nothing_about_the_digit():
    task = RandomLabelDigits(num_examples=1797).task(0, 0)
    counts = torch.bincount(task.targets, minlength=10)
    assert int(counts.min()) > 130
    assert int(counts.max()) < 230


def test_online_mnist_shows_each_example_once(fake_mnist):
    stream = PermutedMNIST(data_dir=str(fake_mnist), num_examples=60)
    task = stream.task(0, 0)
    images, labels, _, _ = mnist.load_mnist(fake_mnist)
    assert (task.num_epochs, task.batch_size, task.num_steps) == (1, 1, 60)
    assert torch.equal(task.inputs.sort(1).values.unique(dim=0), images.sort(1).values.unique(dim=0))
    assert torch.equal(task.targets.bincount(minlength=10), labels.bincount(minlength=10))


def test_the_shipped_digits_are_the_published_ones():
    inputs, targets = load_digits()
    assert inputs.shape == (1797, 64)
    assert torch.bincount(targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.equal((inputs * 16).round(), inputs * 16)
    digest = hashlib.sha256((inputs * 16).to(torch.uint8).numpy().tobytes()).hexdigest()
    assert digest == "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (RandomLabelDigits, {"num_examples": 0}),
        (RandomLabelDigits, {"num_examples": 1798}),
        (RandomLabelDigits, {"batch_size": 0}),
        (PermutedDigits, {"num_examples": 1201}),
        (PermutedDigits, {"num_test": 1797}),
        (StationaryDigits, {"num_epochs": 0}),
        (PermutedMNIST, {"num_examples": 60001}),
    ],
)
def test_impossible_options_are_refused(cls, options):
    with pytest.raises(IllegalConfiguration, match=next(iter(options))):
        cls(**options)


def test_the_first_streams_are_in_the_table():
    assert {cls.name for cls in (RandomLabelDigits, PermutedDigits, StationaryDigits, PermutedMNIST)} <= set(STREAMS)


# -- the idx files -------------------------------------------------------------------------------------------------


def test_idx_values(fake_mnist):
    train, labels, test, test_labels = mnist.load_mnist(fake_mnist)
    assert train.shape == (60, 784)
    assert test.shape == (20, 784)
    assert labels.shape == (60,)
    assert test_labels.dtype == torch.int64
    assert torch.equal((train * 255).round() / 255, train)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:-5], "truncated"),
        (lambda content: content[:3], "truncated"),
        (lambda content: content + b"x", "too long"),
        (lambda content: b"\x00\x00\x08\x01" + content[4:], "magic number"),
        (lambda content: content[:4] + struct.pack(">I", 61) + content[8:], "shape"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "wrong content"),
    ],
)
def test_a_damaged_file_is_named_with_its_checksums(fake_mnist, damage, says):
    path = fake_mnist / mnist.FILES["test_images"].name
    content = damage(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(mnist.DataError, match=says) as caught:
        mnist.load_mnist(fake_mnist)
    for part in (str(path), mnist.FILES["test_images"].sha256, hashlib.sha256(content).hexdigest()):
        assert part in str(caught.value)


def test_a_damaged_gzip_file_is_named(fake_mnist):
    path = fake_mnist / f"{mnist.FILES['train_images'].name}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(mnist.DataError, match="cannot be decompressed") as caught:
        mnist.load_mnist(fake_mnist)
    assert str(path) in str(caught.value)
    assert mnist.FILES["train_images"].sha256 in str(caught.value)


def test_missing_files_say_which_four_go_where(tmp_path):
    mnist._load.cache_clear()
    with pytest.raises(mnist.DataError) as caught:
        mnist.load_mnist(tmp_path)
    assert str(tmp_path) in str(caught.value)
    for file in mnist.FILES.values():
        assert f"{file.name}.gz" in str(caught.value)


def test_without_a_folder_the_cache_is_used(fake_mnist, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(fake_mnist / "cache"))
    monkeypatch.delenv("PLIANT_DATA_DIR", raising=False)
    stream = PermutedMNIST(num_examples=5)
    with pytest.raises(mnist.DataError, match="cache/pliant/mnist"):
        stream.task(0, 0)
    stream.folder.parent.mkdir(parents=True)
    stream.folder.symlink_to(fake_mnist)
    stream.prepare()
    assert stream.task(0, 0).inputs.shape == (5, 784)


def test_download_checks_and_falls_back_to_the_next_mirror(fake_mnist, tmp_path):
    packed = {}
    for file in mnist.FILES.values():
        plain = fake_mnist / file.name
        packed[f"{file.name}.gz"] = (
            gzip.compress(plain.read_bytes()) if plain.exists() else (fake_mnist / f"{file.name}.gz").read_bytes()
        )

    def fetch(url):
        if url.startswith("bad:"):
            return gzip.compress(b"not it")
        if url.startswith("down:"):
            raise OSError("no network")
        return packed[url.removeprefix("good:")]

    target = tmp_path / "fetched"
    mnist.download(target, mirrors=("down:", "bad:", "good:"), fetch=fetch)
    assert sorted(path.name for path in target.iterdir()) == sorted(packed)
    assert torch.equal(mnist.load_mnist(target)[0], mnist.load_mnist(fake_mnist)[0])

    empty = tmp_path / "empty"
    with pytest.raises(mnist.DataError) as caught:
        mnist.download(empty, mirrors=("down:",), fetch=fetch)
    assert not empty.exists()
    for name in packed:
        assert name in str(caught.value)
    assert str(empty) in str(caught.value)
