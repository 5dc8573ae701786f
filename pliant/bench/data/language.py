"""An invented language: words of syllables, a grammar of which word follows which, sentences and lines."""

from __future__ import annotations

import numpy as np

__all__ = ["make_text"]

_ONSETS = ("", "b", "br", "d", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou", "ei")
_CODAS = ("", "", "", "n", "r", "s", "t", "l", "m")
_NUM_WORDS = 240
_NUM_FOLLOWERS = 8


def make_text(rng: np.random.Generator, num_characters: int) -> str:
    """Return a text of exactly ``num_characters`` characters in a language that ``rng`` invents.

    240 words of one to three syllables; after each, one of eight others is likely (with probabilities proportional to
    1, 1/2, ... 1/8); sentences of 4 to 11 words begin with a capital and end with a full stop, every third with a line.

    >>> text = make_text(np.random.default_rng(0), 60)
    >>> len(text), text == make_text(np.random.default_rng(0), 60)
    (60, True)
    """
    words: list[str] = []
    while len(words) < _NUM_WORDS:
        syllables = 1 + rng.integers(3)
        word = "".join(
            str(part[rng.integers(len(part))]) for _ in range(syllables) for part in (_ONSETS, _VOWELS, _CODAS)
        )
        if word not in words:
            words.append(word)
    followers = np.stack([rng.permutation(_NUM_WORDS)[:_NUM_FOLLOWERS] for _ in range(_NUM_WORDS)])
    bounds = np.cumsum(1 / np.arange(1, _NUM_FOLLOWERS + 1))
    pieces: list[str] = []
    length, word_id, sentence = 0, int(rng.integers(_NUM_WORDS)), 0
    while length < num_characters:
        picks = np.searchsorted(bounds, rng.random(4 + rng.integers(8)) * bounds[-1])
        said = []
        for pick in picks.tolist():
            word_id = int(followers[word_id, pick])
            said.append(words[word_id])
        sentence += 1
        text = f"{' '.join(said).capitalize()}.{' ' if sentence % 3 else chr(10)}"
        pieces.append(text)
        length += len(text)
    return "".join(pieces)[:num_characters]
