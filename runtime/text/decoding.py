"""Decoding: tokens after a prompt, one by one, on any engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intaglio.runtime.engines.names import check_known
from intaglio.runtime.loaded_model import LoadedModel
from intaglio.runtime.text.session import open_session

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from intaglio.runtime.text.sampling import Sampler
    from intaglio.runtime.text.session import Session

    Logits = npt.NDArray[np.float32]


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
    session: Session | None = None,
) -> Iterator[Generated]:
    """Decoding, token by token, past any end token.

    Args:
        model: the compiled model.
        prompt: token ids.
        tokens: how many to generate.
        engine: one of `ENGINES`; `onnxruntime` runs the ONNX file as it comes.
        sampler: chooses tokens on the host; without it each is the first maximum of its logits, as
            the chip's head takes it.
        session: where tokens go, in which the first tokens of the prompt may be already; else a new
            one with whatever adapter is active.

    Raises:
        UserError: the prompt is empty, too long, or holds an unknown token id.
    """
    check_known(engine)
    model.check_prompt(prompt, tokens)
    if engine == "onnxruntime":
        return _judge(model, prompt, tokens, sampler)
    session = open_session(model, engine, follows=True) if session is None else session
    return _decode(session, prompt, tokens, sampler)


def _decode(
    session: Session, prompt: Sequence[int], tokens: int, sampler: Sampler | None
) -> Iterator[Generated]:
    import numpy as np

    start = time.perf_counter()
    session.feed(prompt[session.position : -1])
    token = prompt[-1]
    for _ in range(tokens):
        ((exact, token),) = session.steps([token])
        logits = np.ldexp(exact.astype(np.float64), -session.fraction_bits).astype(np.float32)
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
