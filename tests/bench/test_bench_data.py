"""Readers of the original formats: right values, and one line that names file, size and checksum where it is wrong."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import itertools
import os
import pickle
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import data_files
import numpy as np
import pytest
import torch

from pliant.bench.data import fetch, images, mnist
from pliant.bench.data.cifar import CIFAR10, CIFAR100, read_cifar
from pliant.bench.data.files import ENVIRONMENT, DataError, MissingData, data_folder, written_whole
from pliant.bench.data.idx import IdxFile, read_idx
from pliant.bench.data.imagenet32 import classes_from_batches, read_batch
from pliant.bench.data.language import make_text
from pliant.bench.data.per_class import read_class
from pliant.bench.data.text import NUM_SYMBOLS, SHAKESPEARE, read_texts
from pliant.bench.streams import STREAMS, CharacterDrift, FolderStream, PermutedMNIST, write_folder
from pliant.cli import main
from pliant.errors import IllegalConfiguration


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    for cached in (images._loaded, read_class, read_texts, mnist._load):
        cached.cache_clear()


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


# --------------------------------------------------------------------------------------------------------- CIFAR


@pytest.mark.parametrize(("name", "files"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_planes_and_labels(tmp_path, name, files):
    root = data_files.write_cifar(tmp_path, name)
    each = data_files.CIFAR_PER_CLASS[name]
    train, labels, test, test_labels = read_cifar(root, files, subset=each[0])
    raw = np.fromfile(root / files.train[0], dtype=np.uint8).reshape(-1, files.row_bytes)
    assert np.array_equal(np.bincount(labels), np.full(files.num_classes, each[0]))
    assert train.shape == (len(labels), 3, 32, 32)
    assert len(test) == len(test_labels) == each[1] * files.num_classes
    k, row = 5, raw[5]
    assert labels[k] == row[files.label_bytes - 1]
    assert train[k, 1, 2, 3] == row[files.label_bytes + 1024 + 2 * 32 + 3]  # green, third row, fourth column


def test_a_cifar_file_that_is_cut_off_is_named_with_sizes(tmp_path):
    root = data_files.write_cifar(tmp_path, "cifar10")
    path = root / "data_batch_1.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match="truncated") as caught:
        read_cifar(root, CIFAR10, subset=12)
    for part in (str(path), str(len(content) - 100), "3073", hashlib.sha256(content[:-100]).hexdigest()):
        assert part in one_line(caught)
    path.write_bytes(content[: -5 * 3073])  # between two images: only the counts can tell
    with pytest.raises(DataError, match="instead of 12") as caught:
        read_cifar(root, CIFAR10, subset=12)
    assert str(len(content) - 5 * 3073) in one_line(caught)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="truncated"):
        read_cifar(root, CIFAR10, subset=12)


def test_a_subset_must_be_asked_for(tmp_path):
    root = data_files.write_cifar(tmp_path, "cifar100")
    with pytest.raises(DataError, match="subset=8") as caught:
        read_cifar(root, CIFAR100)
    assert "8 images of each class instead of 500" in one_line(caught)
    assert str(50000 * 3074) in one_line(caught)
    with pytest.raises(MissingData, match=r"data_batch_2\.bin"):
        read_cifar(data_files.write_cifar(tmp_path, "cifar10"), CIFAR10)


def test_a_stream_of_classes_reads_a_subset_where_it_is_told_so(tmp_path):
    data_files.write_cifar(tmp_path, "cifar100")
    options = {"dataset": "cifar100", "data_dir": str(tmp_path), "num_all": 100, "num_test": 3, "image_size": 32}
    stream = STREAMS["continual_imagenet"](**options, num_train=8, subset=8)
    stream.prepare()
    train, test = stream.of_class(7)
    stored = images.load_images("cifar100", str(tmp_path), subset=8)
    assert torch.equal(train, stored.train_images[stored.train_labels == 7].float().div(255).sub(0.5).div(0.5))
    assert len(test) == 3
    with pytest.raises(DataError, match="subset=8"):
        STREAMS["continual_imagenet"](**options, num_train=8).of_class(7)
    with pytest.raises(IllegalConfiguration, match="has 8 training and 3 test images"):
        STREAMS["continual_imagenet"](**options, num_train=9, subset=8).of_class(7)
    with pytest.raises(IllegalConfiguration, match="imagenet32 is read whole: leave out subset"):
        STREAMS["continual_imagenet"](dataset="imagenet32", subset=8)
    with pytest.raises(IllegalConfiguration, match="must not be negative"):
        STREAMS["continual_imagenet"](subset=-1)


def test_a_file_with_labels_that_cannot_be_is_another_file(tmp_path):
    root = data_files.write_cifar(tmp_path, "cifar10")
    content = bytearray((root / "test_batch.bin").read_bytes())
    content[3073] = 77
    (root / "test_batch.bin").write_bytes(bytes(content))
    with pytest.raises(DataError, match="label 77"):
        read_cifar(root, CIFAR10, subset=12)


# ----------------------------------------------------------------------------------------- a file for each class


def test_classes_are_read_one_by_one(tmp_path):
    data_files.write_classes(tmp_path, "classes")
    train, test = read_class(tmp_path, 3, 5, 3, 32)
    raw = np.load(tmp_path / "classes" / "3.npy")
    assert np.array_equal(torch.cat([train, test]).numpy(), raw)
    data_files.write_classes(tmp_path / "floats", dtype=np.float64)
    assert read_class(tmp_path / "floats", 3, 5, 3, 32)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "not found"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "damaged or truncated"),
        (lambda path: path.write_bytes(b"no array"), "damaged or truncated"),
        (
            lambda path: np.save(path, np.zeros((7, 3, 32, 32), np.uint8)),
            r"\[7, 3, 32, 32\] instead of \[8, 3, 32, 32\]",
        ),
        (lambda path: np.save(path, np.zeros((8, 3, 32, 32), np.int64)), "int64"),
        (lambda path: np.save(path, np.full((8, 3, 32, 32), np.inf)), "not finite"),
        (lambda path: np.save(path, np.array([print], dtype=object), allow_pickle=True), "damaged or truncated"),
    ],
)
def test_a_damaged_class_file_is_named(tmp_path, damage, says):
    data_files.write_classes(tmp_path)
    damage(tmp_path / "3.npy")
    with pytest.raises(DataError, match=says) as caught:
        read_class(tmp_path, 3, 5, 3, 32)
    assert str(tmp_path / "3.npy") in one_line(caught)


# --------------------------------------------------------------------------------------------------- ImageNet-32


def batch(num: int = 30, num_classes: int = 3) -> dict:
    rng = np.random.default_rng(0)
    labels = (1 + np.arange(num) % num_classes).tolist()
    return {"data": rng.integers(0, 256, (num, 3072), dtype=np.uint8), "labels": labels, "mean": rng.random(3072)}


@pytest.mark.parametrize("protocol", [2, 4, "npz"])
def test_imagenet_batches_become_class_files(tmp_path, protocol):
    content = batch()
    if protocol == "npz":
        np.savez(tmp_path / "train_data_batch_1.npz", **content)
    else:
        (tmp_path / "train_data_batch_1").write_bytes(pickle.dumps(content, protocol=protocol))
    classes_from_batches(tmp_path, 8, num_classes=3)
    for label in range(3):
        found = np.load(tmp_path / "classes" / f"{label}.npy")
        assert np.array_equal(found, content["data"][label::3][:8].reshape(-1, 3, 32, 32))
    (tmp_path / "classes" / "1.npy").write_bytes(b"kept")
    classes_from_batches(tmp_path, 8, num_classes=3)
    assert (tmp_path / "classes" / "1.npy").read_bytes() == b"kept"
    for label in range(3):
        (tmp_path / "classes" / f"{label}.npy").unlink()
    with pytest.raises(DataError, match="class 0 has 10 images in the 1 batches"):
        classes_from_batches(tmp_path, 11, num_classes=3)
    assert not list((tmp_path / "classes").iterdir())


class Evil:
    def __reduce__(self):
        return os.mkdir, ("run by a pickle",)


def test_nothing_in_a_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train_data_batch_1"
    for content in ({**batch(), "extra": Evil()}, Evil(), {**batch(), "f": functools.partial(print)}):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match="asks for") as caught:
            read_batch(path)
        assert str(path) in one_line(caught)
    assert not (tmp_path / "run by a pickle").exists()
    pickle.loads(pickle.dumps(Evil()))  # it would have been: the test can fail
    assert (tmp_path / "run by a pickle").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-200],
        lambda content: b"",
        lambda content: b"\x80\x04]\x94.",
        lambda content: pickle.dumps({"data": 3, "labels": [1]}),
        lambda content: pickle.dumps({**batch(), "labels": [0] * 30}),
        lambda content: pickle.dumps({**batch(), "labels": [1] * 29}),
    ],
)
def test_a_damaged_batch_is_named_with_its_checksum(tmp_path, damage):
    path = tmp_path / "train_data_batch_1"
    content = damage(pickle.dumps(batch()))
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_batch(path)
    assert str(path) in one_line(caught)
    assert hashlib.sha256(content).hexdigest() in str(caught.value)


# -------------------------------------------------------------------------------------------- idx, text, folders


def test_idx_without_a_known_checksum_is_known_by_its_size(tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    file = IdxFile("a-idx3-ubyte", (2, 3, 4))
    assert read_idx(tmp_path, file) is None
    data_files.write_idx(tmp_path / file.name, array, packed=True)
    assert np.array_equal(read_idx(tmp_path, file), array)
    data_files.write_idx(tmp_path / file.name, array[:1])
    with pytest.raises(DataError, match=f"{file.num_bytes} bytes expected"):
        read_idx(tmp_path, file)
    (tmp_path / file.name).unlink()
    packed = tmp_path / f"{file.name}.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be decompressed"):
        read_idx(tmp_path, file)


def test_a_set_of_idx_files(tmp_path):
    shapes = {"train_images": (6, 28, 28), "train_labels": (6,), "test_images": (3, 28, 28), "test_labels": (3,)}
    files = {key: IdxFile(f"emnist-{key}", shape) for key, shape in shapes.items()}
    rng = np.random.default_rng(0)
    made = {key: rng.integers(0, 47, shape) for key, shape in shapes.items()}
    for key, array in made.items():
        data_files.write_idx(tmp_path / files[key].name, array, packed=key.startswith("train"))
    found = images._of_idx(files)(tmp_path, 0)
    assert np.array_equal(found.train_images[:, 0].numpy(), made["train_images"])
    assert np.array_equal(found.test_labels.numpy(), made["test_labels"])
    assert found.train_images.shape == (6, 1, 28, 28)
    (tmp_path / "emnist-test_labels").unlink()
    with pytest.raises(MissingData, match="emnist-test_labels"):
        images._of_idx(files)(tmp_path, 0)
    # What is known of a set without its files fits the files that it names.
    for name, known in (("emnist", images.EMNIST_FILES), ("mnist", mnist.FILES)):
        about = images.IMAGES[name]
        assert (about.num_train, *about.shape[1:]) == known["train_images"].shape
        assert (about.num_test,) == known["test_labels"].shape


def test_a_text_that_is_none_is_refused(tmp_path):
    with pytest.raises(MissingData, match=r"no \.txt file"):
        read_texts(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"good \xff bad")
    with pytest.raises(DataError, match="byte 5") as caught:
        read_texts(tmp_path)
    assert hashlib.sha256(b"good \xff bad").hexdigest() in one_line(caught)
    read_texts.cache_clear()
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match="no text"):
        read_texts(tmp_path)


def test_invented_languages_are_languages():
    one, other = (make_text(np.random.default_rng(seed), 20000) for seed in (0, 1))
    words = [set(text.lower().replace(".", "").split()) for text in (one, other)]
    assert 150 < len(words[0]) < 400
    assert len(words[0] & words[1]) < 0.3 * len(words[0])
    # What follows a word is likely to be what followed it before: one of eight, the first of them in 37 %.
    tokens = one.lower().replace(".", "").split()
    pairs = {}
    for before, after in itertools.pairwise(tokens):
        pairs.setdefault(before, []).append(after)
    common = [
        max(followers.count(w) for w in set(followers)) / len(followers)
        for followers in pairs.values()
        if len(followers) > 30
    ]
    assert 0.25 < np.mean(common) < 0.55


def test_where_files_are_looked_for(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    assert data_folder(tmp_path, "mnist") == tmp_path / "mnist"
    assert data_folder(tmp_path / "mnist", "mnist") == tmp_path / "mnist"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert data_folder("", "mnist") == tmp_path / "cache" / "pliant" / "mnist"
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert data_folder("", "mnist") == tmp_path / "mnist"
    assert PermutedMNIST().folder == tmp_path / "mnist"
    assert data_folder(tmp_path / "named", "mnist") == tmp_path / "named"


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def breaks(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written_whole(tmp_path / "new" / "a", breaks)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_of_tasks_comes_back_and_is_checked(tmp_path):
    rng = np.random.default_rng(0)
    tasks = [(rng.random((6, 4), dtype=np.float32), rng.integers(0, 3, 6)) for _ in range(3)]
    made = write_folder(iter(tasks), tmp_path / "own", num_classes=3, num_epochs=2, batch_size=4)
    stream = FolderStream(str(tmp_path / "own"), digest=made)
    stream.prepare()
    for index, (x, y) in enumerate(tasks):
        task = stream.task(index, 0)
        assert np.array_equal(task.inputs.numpy(), x)
        assert np.array_equal(task.targets.numpy(), y)
        assert task.num_steps == 4
    shuffled = FolderStream(str(tmp_path / "own"), shuffle_tasks=True)
    orders = {tuple(tuple(shuffled.task(k, seed).targets.tolist()) for k in range(3)) for seed in range(8)}
    assert len(orders) > 2
    assert all(sorted(order) == sorted(tuple(y.tolist()) for _, y in tasks) for order in orders)
    with pytest.raises(IllegalConfiguration, match="holds a stream already"):
        write_folder(iter(tasks), tmp_path / "own", num_classes=3)
    with pytest.raises(DataError, match="which the option digest asks for"):
        FolderStream(str(tmp_path / "own"), digest="0" * 64).prepare()
    path = tmp_path / "own" / "task-00001.npz"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="SHA-256"):
        FolderStream(str(tmp_path / "own")).prepare()
    with pytest.raises(MissingData, match=r"stream\.json"):
        FolderStream(str(tmp_path)).prepare()
    with pytest.raises(IllegalConfiguration, match="--data-dir"):
        FolderStream().prepare()
    wrong = write_folder([(np.ones((2, 3)), np.ones((2, 1)))], tmp_path / "mse", num_classes=1, loss="mse", score="mse")
    assert FolderStream(str(tmp_path / "mse"), digest=wrong).task(0, 0).targets.dtype == torch.float32
    (tmp_path / "mse" / "stream.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        FolderStream(str(tmp_path / "mse")).prepare()


# ----------------------------------------------------------------------------------------------------- downloads


@pytest.fixture
def server(tmp_path):
    """A web server on this machine that has an archive and a text."""
    root = tmp_path / "served"
    root.mkdir()
    with tarfile.open(root / "a.tar.gz", "w:gz") as archive:
        for name, content in (("in/one.bin", b"one"), ("in/two.bin", b"two"), ("../evil", b"evil")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(root / "a.zip", "w") as packed:
        packed.writestr("in/one.bin", b"one")
    (root / "text.txt").write_bytes(b"a text")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield root, f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()
        thread.join()


def sha(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_downloads_are_checked_and_give_up_only_what_is_asked_for(tmp_path, server):
    pytest.importorskip("pooch", reason="downloads need pooch, the extra `data`")
    root, url = server
    target = tmp_path / "target"
    fetch.fetch_archive(f"{url}/a.tar.gz", sha(root / "a.tar.gz"), {"in/one.bin": target / "one.bin"}, "help")
    assert [(path.name, path.read_bytes()) for path in target.iterdir()] == [("one.bin", b"one")]
    fetch.fetch_archive(f"{url}/a.zip", sha(root / "a.zip"), {"in/one.bin": target / "zipped"}, "help")
    assert (target / "zipped").read_bytes() == b"one"
    fetch.fetch_file(f"{url}/text.txt", sha(root / "text.txt"), target / "text.txt", "help")
    assert (target / "text.txt").read_bytes() == b"a text"
    (root / "text.txt").write_bytes(b"another")
    fetch.fetch_file(f"{url}/text.txt", "sha256:0", target / "text.txt", "help")  # it is there: nothing is asked
    for address, known, says in (
        ("text.txt", "sha256:" + "0" * 64, "does not match the known hash"),
        ("nothing.txt", sha(root / "text.txt"), "404"),
    ):
        with pytest.raises(DataError, match=says) as caught:
            fetch.fetch_file(f"{url}/{address}", known, target / "new.txt", "put it there")
        assert one_line(caught).endswith("put it there")
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch.fetch_archive(f"{url}/a.tar.gz", sha(root / "a.tar.gz"), {"in/none.bin": target / "none"}, "help")
    assert not (target / "new.txt").exists()
    assert not (target / "none").exists()


def test_without_pooch_the_way_by_hand_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)  # what importing something that is not there comes to
    with pytest.raises(DataError, match=r"pip install 'pliant\[data\]', or put it there") as caught:
        fetch.fetch_file("http://127.0.0.1:9/x", "md5:0", tmp_path / "sub" / "x", "put it there")
    one_line(caught)
    assert not (tmp_path / "sub").exists()


# ---------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("continual_imagenet --preset paper", ["0.npy", "999 more", "--data-dir", ENVIRONMENT, "--preset mini"]),
        ("continual_tiny_imagenet --preset paper", ["tiny", "199 more", "--preset mini"]),
        (
            "class_incremental --preset paper --set stream.subset=500",
            ["train.bin", "CIFAR-100", "run class_incremental --preset mini"],
        ),
        ("character_drift --preset shakespeare", [".txt", "--preset mini"]),
        ("folder", ["stream.json", "write_folder"]),
    ],
)
def test_absent_data_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert main(["run", *arguments.split(), "--data-dir", "tiny", "--seeds", "1", "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pliant: ")
    assert error.count("\n") == 1
    for part in says:
        assert part in error
    assert [path.name for path in tmp_path.rglob("*")] == ["tiny"]


def test_a_truncated_file_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = data_files.write_cifar(tmp_path, "cifar10")
    (root / "test_batch.bin").write_bytes((root / "test_batch.bin").read_bytes()[:-7])
    before = sorted(tmp_path.rglob("*"))
    options = ["--set", "stream.subset=12", "stream.num_examples=50", "--data-dir", str(root), "--seeds", "1"]
    assert main(["run", "label_permuted", "--preset", "paper_cifar", *options, "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "test_batch.bin: truncated" in error
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------------------------------------- real files


def test_real_mnist_and_shakespeare():
    shared = data_files.shared_data()
    task = PermutedMNIST(data_dir=str(shared)).task(0, 0)
    assert torch.bincount(task.targets).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    stream = STREAMS["input_permuted"](dataset="mnist", data_dir=str(shared), scaling="half", num_examples=500)
    stream.prepare()
    task = stream.task(1, 0)
    assert (float(task.inputs.min()), float(task.inputs.max())) == (-1.0, 1.0)
    text = shared / "tinyshakespeare" / "input.txt"
    assert f"sha256:{hashlib.sha256(text.read_bytes()).hexdigest()}" == SHAKESPEARE[1]
    drift = CharacterDrift(text="files", data_dir=str(shared), change="words", context=64, num_examples=20)
    drift.prepare()
    assert int(drift.task(2, 0).inputs.max()) < NUM_SYMBOLS - 1  # every character of it is in the alphabet


@pytest.mark.wide
def test_real_cifar_and_imagenet(tmp_path):
    folder = data_files.prepared_data(tmp_path / "real")
    options = {"dataset": "cifar100", "subset": 100, "data_dir": str(folder), "flat": False, "scaling": "channel"}
    stream = STREAMS["class_incremental"](**options, classes_per_task=5, num_train_per_class=90, num_valid=10)
    stream.prepare()
    task = stream.task(3, 0)
    assert task.inputs.shape == (20 * 90, 3, 32, 32)
    assert abs(float(task.inputs.mean())) < 0.5
    assert 0.7 < float(task.inputs.std()) < 1.3
    pairs = STREAMS["continual_imagenet"](
        dataset="imagenet32", data_dir=str(folder), num_all=200, num_train=100, num_test=50, image_size=32
    )
    pairs.prepare()
    assert pairs.task(150, 0).inputs.shape == (200, 3, 32, 32)
    five = STREAMS["five_plus_one"](dataset="cifar100", subset=100, data_dir=str(folder), flat=False)
    assert len(five.task(0, 0).targets) == 500
