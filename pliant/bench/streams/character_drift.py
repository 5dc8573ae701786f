"""Language drift, character by character: the same text in ever other ciphers, or one text after another."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from pliant.bench.data.fetch import fetch_file
from pliant.bench.data.files import MissingData, data_folder
from pliant.bench.data.language import make_text
from pliant.bench.data.text import NUM_SYMBOLS, SHAKESPEARE, encode, read_texts
from pliant.bench.streams.base import Task, generator, require
from pliant.bench.streams.images import where_to_put

__all__ = ["CharacterDrift"]

_FOLDER = "tinyshakespeare"


@final
@dataclass(frozen=True)
class CharacterDrift:
    """Predict the next character, at every place of a passage, while the language changes from task to task.

    What changes: ``characters``, every task has its own cipher, a permutation of the characters that occur;
    ``words``, every task permutes the vocabulary, so that spelling stays and grammar goes; ``texts``, each task has
    another text, in turns. Passages are drawn anew for each task from the first nine tenths of a text, test passages
    from the rest.

    Attributes:
        text: ``generated`` (an invented language, nothing to download) or ``files`` (the ``.txt`` files of
            ``data_dir``, in the order of their names; tiny Shakespeare where no folder is named).
        data_dir: folder with texts, or one file. It changes results; name what it holds wherever one is shown.
        change: ``characters``, ``words`` or ``texts``.
        context: characters of a passage; it is followed by one more, which is only predicted.
        num_examples: passages per task.
        num_epochs: passes over a task.
        batch_size: passages per update.
        num_test: test passages; 0: none.
        num_characters: length of a generated text.

    Source: ``words`` is the change of permuted Shakespeare, Farias & Jozefiak (2024), Self-normalized resets,
        arXiv:2410.20098: 500 tasks, 32 batches of 8 passages of 128 tokens, 100 passes, 2 heads, width 32, 256 hidden
        units. Deviation: theirs are tokens of GPT-2, these are characters, so that a network for a CPU suffices and no
        tokenizer is needed; hence no preset claims to be the published problem.
    """

    name: ClassVar[str] = "character_drift"
    title: ClassVar[str] = "Character-level language drift"
    num_inputs: ClassVar[int] = NUM_SYMBOLS
    num_classes: ClassVar[int] = NUM_SYMBOLS
    input_dtype: ClassVar[torch.dtype] = torch.int64

    text: str = "generated"
    data_dir: str = ""
    change: str = "characters"
    context: int = 32
    num_examples: int = 256
    num_epochs: int = 4
    batch_size: int = 16
    num_test: int = 0
    num_characters: int = 30000

    def __post_init__(self) -> None:
        for option in ("context", "num_examples", "num_epochs", "batch_size"):
            require(getattr(self, option) >= 1, self, f"{option} must be at least 1")
        require(self.num_test >= 0, self, "num_test must not be negative")
        require(self.text in ("generated", "files"), self, f"text {self.text!r} is neither generated nor files")
        changes = ("characters", "words", "texts")
        require(self.change in changes, self, f"change {self.change!r} is none of {', '.join(changes)}")
        least = 10 * (self.context + 2)
        require(self.num_characters >= least, self, f"num_characters must be at least {least} for this context")

    @property
    def input_shape(self) -> tuple[int]:
        """Places of a passage."""
        return (self.context,)

    @property
    def requires_data(self) -> str | None:
        """A text, unless it is generated."""
        return "a text" if self.text == "files" else None

    @property
    def measures_past(self) -> bool:
        """Earlier texts can still be read; ciphers contradict each other."""
        return self.num_test > 0 and self.change == "texts"

    @property
    def task_bytes(self) -> int:
        """Memory of a task."""
        return (self.num_examples + self.num_test) * self.context * 16

    @property
    def folder(self) -> Path:
        """Where the texts are, or will be."""
        return data_folder(self.data_dir, _FOLDER)

    def prepare(self) -> None:
        """Make sure of the texts; tiny Shakespeare is downloaded where no folder is named.

        Raises:
            DataError: a text is missing and not to be had, or is no text.
        """
        if self.text == "generated":
            return
        if not self.data_dir and not any(self.folder.glob("*.txt")):
            fetch_file(*SHAKESPEARE, self.folder / "input.txt", self._remedy())
        for which in range(len(self._texts())):
            self._ids(which, 0)

    def _remedy(self) -> str:
        return where_to_put(self, "one or more .txt files", self.folder)

    def _texts(self) -> tuple[str, ...]:
        try:
            return read_texts(self.folder.resolve())
        except MissingData as error:
            raise MissingData(f"{error}; {self._remedy()}") from error

    def _plain(self, which: int, seed: int) -> str:
        """The text of number ``which``: languages have no end, files come back."""
        if self.text == "generated":
            return make_text(generator(f"{self.name} language", seed, which), self.num_characters)
        texts = self._texts()
        return texts[which % len(texts)]

    def _ids(self, which: int, seed: int) -> np.ndarray:
        ids = encode(self._plain(which, seed))
        require(
            len(ids) >= 10 * (self.context + 2),
            self,
            f"a text of {len(ids)} characters is too short for a context of {self.context}",
        )
        return ids

    def task(self, index: int, seed: int) -> Task:
        """Return task ``index``; see :class:`Stream`."""
        require(index >= 0, self, f"there is no task {index}")
        rng = generator(self.name, seed, index)
        if self.change == "texts":
            ids = self._ids(index, seed)
        elif self.change == "words":
            ids = encode(permute_words(self._plain(0, seed), rng))
        else:
            ids = self._ids(0, seed)
            symbols = np.unique(ids)
            cipher = np.arange(NUM_SYMBOLS)
            cipher[symbols] = rng.permutation(symbols)
            ids = cipher[ids]
        cut = len(ids) * 9 // 10
        inputs, targets = self._passages(ids[:cut], self.num_examples, rng)
        test: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.num_test:
            test = self._passages(ids[cut:], self.num_test, generator(f"{self.name} test", seed, index))
        return Task(inputs, targets, self.num_epochs, self.batch_size, (seed, index), *test)

    def _passages(self, ids: np.ndarray, num: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        starts = rng.integers(0, len(ids) - self.context, num)
        passages = torch.from_numpy(ids[starts[:, None] + np.arange(self.context + 1)])
        return passages[:, :-1].contiguous(), passages[:, 1:].contiguous()


@functools.lru_cache(maxsize=2)
def _words(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words and what is between them, alternately, and the vocabulary in the order of first use."""
    pieces = tuple(re.split(r"([A-Za-z']+)", text))
    return pieces, tuple(dict.fromkeys(pieces[1::2]))


def permute_words(text: str, rng: np.random.Generator) -> str:
    """Return the text with its vocabulary permuted: wherever one word stood, now another stands.

    >>> permute_words("a cat saw a dog.", np.random.default_rng(1)).count(" ")
    4
    """
    pieces, vocabulary = _words(text)
    renamed = dict(zip(vocabulary, (vocabulary[k] for k in rng.permutation(len(vocabulary))), strict=True))
    return "".join(renamed[piece] if place % 2 else piece for place, piece in enumerate(pieces))
