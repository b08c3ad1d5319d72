"""Decoding: tokens after a prompt, one by one, on any engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intaglio.runtime.engines.names import check_known
from intaglio.runtime.loaded_model import LoadedModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from intaglio.runtime.engines.rtl import RTLChip
    from intaglio.runtime.engines.simulator import Simulator
    from intaglio.runtime.text.sampling import Sampler

    Logits = npt.NDArray[np.float32]

PREFILL_CHUNK = 256
"""Prompt tokens that go through the simulator together."""


@dataclass(frozen=True)
class Generated:
    """A token with the logits [V] that it was chosen by, and the seconds it took here."""

    token: int
    logits: Logits
    seconds: float

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.logits.shape))
        return (
            f"Generated(token={self.token}, logits={self.logits.dtype}[{shape}], "
            f"seconds={self.seconds:.3g})"
        )


def decode(
    model: LoadedModel,
    prompt: Sequence[int],
    tokens: int,
    engine: str = "simulator",
    sampler: Sampler | None = None,
) -> Iterator[Generated]:
    """Decoding, token by token, past any end token.

    Args:
        model: the compiled model.
        prompt: token ids.
        tokens: how many to generate.
        engine: one of `ENGINES`; `onnxruntime` runs the ONNX file as it comes.
        sampler: chooses tokens on the host; without it each is the first maximum of its logits, as
            the chip's head takes it.

    Raises:
        UserError: the prompt is empty, too long, or holds an unknown token id.
    """
    check_known(engine)
    model.check_prompt(prompt, tokens)
    if engine == "onnxruntime":
        return _judge(model, prompt, tokens, sampler)
    return _decode(model.machine(engine), prompt, tokens, sampler)


def _decode(
    machine: Simulator | RTLChip, prompt: Sequence[int], tokens: int, sampler: Sampler | None
) -> Iterator[Generated]:
    import numpy as np

    from intaglio.runtime.engines.simulator import Simulator

    machine.reset()
    start = time.perf_counter()
    *before, token = prompt
    if isinstance(machine, Simulator):
        for first in range(0, len(before), PREFILL_CHUNK):
            machine.forward(before[first : first + PREFILL_CHUNK], first, logits=False)
    else:
        for position, one in enumerate(before):
            machine.step(one, position, sample=False)
    for position in range(len(before), len(before) + tokens):
        result = machine.step(token, position)
        assert result is not None
        exact, token = result
        logits = np.ldexp(exact.astype(np.float64), -machine.fraction_bits).astype(np.float32)
        if sampler is not None:
            token = sampler.choose(logits)
        yield Generated(token, logits, time.perf_counter() - start)
        start = time.perf_counter()


def _judge(
    model: LoadedModel, prompt: Sequence[int], tokens: int, sampler: Sampler | None
) -> Iterator[Generated]:
    reference = model.reference()
    start = time.perf_counter()
    choose = None if sampler is None else sampler.choose
    for token, logits in reference.generate(prompt, tokens, choose):
        yield Generated(token, logits, time.perf_counter() - start)
        start = time.perf_counter()
