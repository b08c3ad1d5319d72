"""Drafts: tokens that somebody guesses, for the chip to verify.

A round hands the chip the token that is next and the guesses behind it. What the chip makes of each
decides: guesses count as far as they are what would have come anyway, greedy or drawn, and the
first that is not is replaced. So the tokens are always those of decoding without drafts.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.dialects.errors import UserError

if TYPE_CHECKING:
    from intaglio.dialects.json_file import JSON
    from intaglio.runtime.judge.reference import KeptByReference
    from intaglio.runtime.loaded_model import LoadedModel

DEFAULT_TOKENS = 4
"""Tokens that are drafted in a round at most."""
_NGRAM = re.compile(r"ngram(?::([0-9]{1,9}))?")
_LENGTH = 3
"""Of the longest sequence that is looked up, unless told."""


@dataclass(frozen=True)
class Round:
    """What became of one draft.

    Attributes:
        position: of the token before it.
        drafted: tokens that were guessed.
        accepted: of these, those that came, and that the text went on from: with the token that the
            chip itself gave after them, the round gave one more.
    """

    position: int
    drafted: int
    accepted: int


class Draft(ABC):
    """Guesses what follows.

    Attributes:
        name: what it is called.
        most: tokens that it guesses at once.
        rounds: what became of its guesses; of one generation.
        seconds: that it took here.
    """

    def __init__(self, name: str, most: int = DEFAULT_TOKENS) -> None:
        if most < 1:
            raise UserError(f"drafts of {most} tokens: at least one is needed")
        self.name = name
        self.most = most
        self.rounds: list[Round] = []
        self.seconds = 0.0

    def reset(self) -> None:
        """Forgets everything: another generation begins."""
        self.rounds = []
        self.seconds = 0.0

    def draft(self, known: Sequence[int], most: int) -> list[int]:
        """Guesses of what follows.

        Args:
            known: the prompt and what came after it; longer than last time, and with the same
                beginning.
            most: how many are of use.
        """
        start = time.perf_counter()
        found = self._guess(known, min(most, self.most)) if most > 0 else []
        self.seconds += time.perf_counter() - start
        return found

    @abstractmethod
    def _guess(self, known: Sequence[int], most: int) -> list[int]:
        """At most so many guesses, at least one being wanted."""

    def figures(self) -> dict[str, JSON]:
        """What became of all guesses."""
        counts = [0] * (self.most + 1)
        for one in self.rounds:
            counts[one.accepted] += 1
        return {
            "by": self.name,
            "most": self.most,
            "rounds": len(self.rounds),
            "drafted": sum(one.drafted for one in self.rounds),
            "accepted": sum(one.accepted for one in self.rounds),
            "accepted_counts": list(counts),
            "host_seconds": self.seconds,
        }


class NgramDraft(Draft):
    """What followed when the last tokens stood there before, in the prompt or behind it.

    The longest sequence counts that occurs again, at its last place.

    Args:
        length: of the longest sequence that is looked up.
    """

    def __init__(self, length: int = _LENGTH, most: int = DEFAULT_TOKENS) -> None:
        super().__init__(f"ngram:{length}", most)
        if length < 1:
            raise UserError(f"ngram:{length}: a sequence has at least one token")
        self._length = length
        self._ends: dict[tuple[int, ...], int] = {}
        """Where a sequence ended last, with something behind it."""
        self._done = 1

    def reset(self) -> None:
        super().reset()
        self._ends.clear()
        self._done = 1

    def _guess(self, known: Sequence[int], most: int) -> list[int]:
        for end in range(self._done, len(known)):
            for length in range(1, min(self._length, end) + 1):
                self._ends[tuple(known[end - length : end])] = end
        self._done = max(self._done, len(known))
        for length in range(min(self._length, len(known)), 0, -1):
            if (end := self._ends.get(tuple(known[-length:]))) is not None:
                # What repeats itself may go on beyond the end of what is known.
                period = len(known) - end
                return [known[end + i % period] for i in range(most)]
        return []


class ModelDraft(Draft):
    """A smaller model's choices, by onnxruntime on this machine.

    Args:
        model: the ONNX file, a decoder with the same tokens.
        vocabulary: tokens of the chip's model.
        capacity: of its caches.

    Raises:
        UserError: onnxruntime cannot run it.
    """

    def __init__(
        self, model: Path, vocabulary: int, capacity: int, most: int = DEFAULT_TOKENS
    ) -> None:
        from intaglio.runtime.judge.reference import Reference

        super().__init__(str(model), most)
        self._reference = Reference(model, capacity=capacity)
        own = self._reference.vocabulary
        self._vocabulary = vocabulary if own is None else min(vocabulary, own)
        self._fed: list[int] = []
        self._kept: dict[int, KeptByReference] = {}
        """What its caches held before tokens of the last round, by position."""

    def reset(self) -> None:
        super().reset()
        self._reference.reset()
        self._fed, self._kept = [], {}

    def _guess(self, known: Sequence[int], most: int) -> list[int]:
        pairs = zip(self._fed, known[:-1], strict=False)
        shared = min(len(self._fed), len(known) - 1)
        same = next((i for i, (one, other) in enumerate(pairs) if one != other), shared)
        if same < len(self._fed):
            self._reference.restore(self._kept[same])
            del self._fed[same:]
        self._kept = {same: self._reference.kept()}
        if any(token >= self._vocabulary for token in known[same:]):
            # A token that it does not know; one of padding, as a rule.
            return []
        found: list[int] = []
        following = list(known[len(self._fed) :])
        while len(found) < most:
            logits = self._reference.feed(following)[-1]
            self._fed += following
            self._kept[len(self._fed)] = self._reference.kept()
            token = int(logits.argmax())
            if token >= self._vocabulary:
                break
            found.append(token)
            following = [token]
        return found


def draft_of(text: str, chip: LoadedModel, most: int = DEFAULT_TOKENS) -> Draft:
    """The draft of `--draft`: `ngram`, `ngram:N`, or an ONNX file.

    Raises:
        UserError: it is none of these, or cannot be run.
    """
    if (found := _NGRAM.fullmatch(text)) is not None:
        return NgramDraft(_LENGTH if found[1] is None else int(found[1]), most)
    path = Path(text)
    if not path.is_file():
        raise UserError(
            f"--draft {text}: neither ngram:N nor a file",
            hint="ngram:3 looks up the last three tokens in what is there; MODEL.onnx is a smaller "
            "model with the same tokens",
        )
    program = chip.program
    return ModelDraft(path, program.vocabulary, program.capacity, most)
