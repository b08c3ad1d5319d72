"""Sessions: sequences of tokens on one loaded chip, each with what the chip keeps of it.

Several may be open at once and take turns in any order. On the simulator each has its own caches
and states, so that its tokens are those that it would get alone. Hardware keeps one sequence: a
session that begins there ends the one before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from intaglio.dialects.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from intaglio.backend.images.adapter import AdapterImage
    from intaglio.runtime.engines.rtl import RTLChip
    from intaglio.runtime.engines.simulator import Simulator
    from intaglio.runtime.loaded_model import LoadedModel

    Result = tuple[npt.NDArray[np.int64], int]
    """Logits [V] as integers, and the first maximum of them."""

PREFILL_CHUNK = 256
"""Prompt tokens that go through the simulator together."""


class Session(ABC):
    """A sequence of tokens on a chip.

    Attributes:
        chip: the compiled model.
        adapter: the adapter that its tokens go through; None: the base alone.
        follows: whatever adapter is the chip's active one counts instead.
        tokens: that were fed and not taken back.
        adapter_cycles: in which the chip's load port took adapters for this session's turns.
    """

    def __init__(self, chip: LoadedModel, adapter: AdapterImage | None, follows: bool) -> None:
        self.chip = chip
        self.adapter = adapter
        self.follows = follows
        self.tokens: list[int] = []
        self.adapter_cycles = 0

    @property
    def position(self) -> int:
        """Of the next token."""
        return len(self.tokens)

    @property
    @abstractmethod
    def fraction_bits(self) -> int:
        """Of the logits."""

    @property
    @abstractmethod
    def saturations(self) -> int:
        """Values that did not fit, of tokens that were taken back too."""

    @abstractmethod
    def feed(self, tokens: Sequence[int]) -> None:
        """Tokens of a prompt, whose successors are not wanted.

        Raises:
            UserError: a token id or position is out of range.
        """

    @abstractmethod
    def steps(self, tokens: Sequence[int]) -> Generator[Result]:
        """What follows each of some tokens; those after the last that was asked for are taken back.

        Args:
            tokens: at least one id. Those behind the first are drafts: a caller that gets another
                token than the next of them closes the iterator.

        Raises:
            UserError: a token id or position is out of range.
        """

    def _take_turn(self) -> None:
        """Makes the session's adapter the active one."""
        if not self.follows and self.chip.adapter is not self.adapter:
            self.adapter_cycles += self.chip.load_adapter(self.adapter)


class SimulatedSession(Session):
    """A session on the simulator."""

    def __init__(
        self, chip: LoadedModel, adapter: AdapterImage | None = None, *, follows: bool = False
    ) -> None:
        from intaglio.runtime.engines.simulator import Kept

        super().__init__(chip, adapter, follows)
        self._kept = Kept.empty(chip.program)

    @property
    def fraction_bits(self) -> int:
        return self.chip.simulator.fraction_bits

    @property
    def saturations(self) -> int:
        return self._simulator().saturations

    def feed(self, tokens: Sequence[int]) -> None:
        simulator = self._simulator()
        for first in range(0, len(tokens), PREFILL_CHUNK):
            chunk = tokens[first : first + PREFILL_CHUNK]
            simulator.forward(chunk, self.position, logits=False)
            self.tokens += chunk

    def steps(self, tokens: Sequence[int]) -> Generator[Result]:
        # A state is replaced by each token, never changed.
        states, matrices = dict(self._kept.states), dict(self._kept.matrices)
        results = self._simulator().steps(tokens, self.position)
        taken = 0
        try:
            for token, result in zip(tokens, results, strict=True):
                # Before it is given: whoever asks meanwhile sees it.
                self.tokens.append(token)
                taken += 1
                yield result
        finally:
            if taken < len(tokens) and (states or matrices):
                # Caches are written over from the position on; states have no positions.
                self._kept.states.update(states)
                self._kept.matrices.update(matrices)
                before = list(tokens[:taken])
                del self.tokens[len(self.tokens) - taken :]
                self.feed(before)

    def _simulator(self) -> Simulator:
        """The simulator, at work on this session."""
        self._take_turn()
        simulator = self.chip.simulator
        if simulator.kept is not self._kept:
            simulator.use(self._kept)
        return simulator


class HardwareSession(Session):
    """A session on hardware.

    A chip with one context takes tokens one after another and takes none back: a draft that is
    wrong never gets there. On one with several the tokens of a prompt and drafts are in flight
    together, and what comes after a wrong one is overwritten.
    """

    def __init__(
        self,
        chip: LoadedModel,
        engine: str,
        adapter: AdapterImage | None = None,
        *,
        follows: bool = False,
    ) -> None:
        super().__init__(chip, adapter, follows)
        self.engine = engine
        self._resets: int | None = None
        self._fed: list[int] = []
        """Tokens of a prompt that wait for the first whose successor is wanted."""

    @property
    def fraction_bits(self) -> int:
        return self.chip.program.fraction(self.chip.program.logits)

    @property
    def saturations(self) -> int:
        return self._hardware().saturations

    def feed(self, tokens: Sequence[int]) -> None:
        hardware = self._hardware()
        if hardware.contexts > 1:
            self.tokens += tokens
            self._fed += tokens
            return
        for token in tokens:
            hardware.step(token, self.position, sample=False)
            self.tokens.append(token)

    def steps(self, tokens: Sequence[int]) -> Generator[Result]:
        hardware = self._hardware()
        if hardware.contexts > 1:
            from intaglio.runtime.engines.in_flight import results

            fed, self._fed = self._fed, []
            first = self.position - len(fed)
            found = results(hardware, [*fed, *tokens], first, len(tokens), hardware.contexts)
            with closing(found):
                for token, result in zip(tokens, found, strict=True):
                    self.tokens.append(token)
                    yield result
            return
        for token in tokens:
            result = hardware.step(token, self.position)
            assert result is not None
            self.tokens.append(token)
            yield result

    def _hardware(self) -> RTLChip:
        """The hardware, which has seen this session's tokens alone since its reset."""
        from intaglio.runtime.engines.rtl import RTLChip

        hardware = self.chip.machine(self.engine)
        assert isinstance(hardware, RTLChip)
        self._take_turn()
        if self._resets is None:
            hardware.reset()
            self._resets = hardware.resets
        elif self._resets != hardware.resets:
            raise UserError(
                f"another sequence has begun on {self.engine}, which keeps one at a time",
                hint="on the simulator several take turns",
            )
        return hardware


def open_session(
    chip: LoadedModel,
    engine: str = "simulator",
    adapter: AdapterImage | None = None,
    *,
    follows: bool = False,
) -> Session:
    """A sequence without tokens.

    Args:
        chip: the compiled model.
        engine: one of `CHECKED_ENGINES`.
        adapter: that its tokens go through.
        follows: they go through whatever adapter is active when they come.

    Raises:
        UserError: the engine cannot run the program.
    """
    chip.machine(engine)
    if engine == "simulator":
        return SimulatedSession(chip, adapter, follows=follows)
    return HardwareSession(chip, engine, adapter, follows=follows)
