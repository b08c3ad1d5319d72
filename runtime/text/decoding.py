"""Decoding: tokens after a prompt, one by one, on any engine."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.names import check_known
from intaglio.runtime.loaded_model import LoadedModel
from intaglio.runtime.text.drafts import Round
from intaglio.runtime.text.session import open_session

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from intaglio.runtime.text.drafts import Draft
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
    draft: Draft | None = None,
) -> Generator[Generated]:
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
        draft: guesses tokens, which are verified together; the tokens are the same without.

    Raises:
        UserError: the prompt is empty, too long, or holds an unknown token id.
    """
    check_known(engine)
    model.check_prompt(prompt, tokens)
    if engine == "onnxruntime":
        if draft is not None:
            raise UserError("--draft: not with --engine onnxruntime", hint="the chip verifies them")
        return _judge(model, prompt, tokens, sampler)
    session = open_session(model, engine, follows=True) if session is None else session
    if draft is not None:
        draft.reset()
    return _decode(session, prompt, tokens, sampler, draft)


def _decode(
    session: Session,
    prompt: Sequence[int],
    tokens: int,
    sampler: Sampler | None,
    draft: Draft | None,
) -> Generator[Generated]:
    import numpy as np

    start = time.perf_counter()
    session.feed(prompt[session.position : -1])
    known, whole = list(prompt), len(prompt) + tokens
    while len(known) < whole:
        guesses = [] if draft is None else draft.draft(known, whole - len(known) - 1)
        before = len(known)
        results = session.steps([known[-1], *guesses])
        try:
            for exact, token in results:
                logits = np.ldexp(exact.astype(np.float64), -session.fraction_bits)
                logits = logits.astype(np.float32)
                if sampler is not None:
                    token = sampler.choose(logits)
                place = len(known) - before
                right = place < len(guesses) and guesses[place] == token
                known.append(token)
                yield Generated(token, logits, time.perf_counter() - start)
                start = time.perf_counter()
                if not right:
                    break
        finally:
            results.close()
            if draft is not None:
                given = max(1, len(known) - before)
                draft.rounds.append(Round(before - 1, len(guesses), given - 1))


def _judge(
    model: LoadedModel, prompt: Sequence[int], tokens: int, sampler: Sampler | None
) -> Generator[Generated]:
    reference = model.reference()
    start = time.perf_counter()
    choose = None if sampler is None else sampler.choose
    for token, logits in reference.generate(prompt, tokens, choose):
        yield Generated(token, logits, time.perf_counter() - start)
        start = time.perf_counter()
