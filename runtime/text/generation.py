"""Text after a prompt: when it ends, why, and what of it is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.names import HARDWARE_ENGINES
from intaglio.runtime.judge.defaults import HARDWARE_TOKENS

if TYPE_CHECKING:
    from intaglio.runtime.loaded_model import LoadedModel
    from intaglio.runtime.text.decoding import Generated
    from intaglio.runtime.text.drafts import Draft
    from intaglio.runtime.text.sampling import Sampler
    from intaglio.runtime.text.session import Session

DEFAULT_TOKENS = 128
"""Tokens that are generated unless told, on what is no simulation of hardware."""

Stopped = Literal["end_token", "tokens", "context"]


@dataclass(frozen=True)
class Stops:
    """What ends a text before its tokens are all there.

    Attributes:
        ids: of tokens.
        texts: that do not become part of the text either.
    """

    ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()


def stops_of(
    chip: LoadedModel,
    given: Sequence[str | int] = (),
    *,
    texts: Sequence[str] = (),
    end_tokens: bool = True,
) -> Stops:
    """What ends a text of a chip.

    Args:
        chip: the compiled model.
        given: ids, integers that are written out, or texts. A text ends a generation where it turns
            up, in one token or several; where it is a token of the tokenizer, that token does too,
            since special ones have no text.
        texts: the same, but numbers among them are texts.
        end_tokens: whether the model's own end tokens count.

    Raises:
        UserError: an id is no token, or a text is given and tokens have no texts.
    """
    ids = set(chip.end_tokens.ids) if end_tokens else set[int]()
    named: list[str] = []
    for one in given:
        if isinstance(one, int) or re.fullmatch(r"-?[0-9]+", one):
            number = str(one)
            if len(number) > 9 or not 0 <= int(one) < chip.program.vocabulary:
                raise UserError(
                    f"--stop {number[:40]}: no token id",
                    hint=f"ids of this model go from 0 to {chip.program.vocabulary - 1}",
                )
            ids.add(int(one))
            continue
        if not one:
            raise UserError("--stop: an empty text is everywhere", hint="give a text or a token id")
        named.append(one)
    named += texts
    for one in named:
        token = chip.text_tokenizer.id_of(one)
        if token is not None and token < chip.program.vocabulary:
            ids.add(token)
    return Stops(frozenset(ids), tuple(named))


def room(
    chip: LoadedModel, prompt: Sequence[int], tokens: int | None, engine: str
) -> tuple[int, bool]:
    """How many tokens are to be generated at most, and whether it is the context that says so.

    Args:
        chip: the compiled model.
        prompt: token ids.
        tokens: how many are wanted; None: as many as are the rule, and fit.
        engine: what runs them.

    Raises:
        UserError: the prompt cannot be used, or as many as are wanted do not fit.
    """
    chip.check_prompt(prompt, 1 if tokens is None else tokens)
    if tokens is not None:
        return tokens, False
    rule = HARDWARE_TOKENS if engine in HARDWARE_ENGINES else DEFAULT_TOKENS
    left = chip.program.capacity - len(prompt) + 1
    return min(rule, left), left < rule


class Generation:
    """One text that is generated; to be iterated over once.

    Attributes:
        stopped: why it ended: `end_token` (a token or text of the stops), `tokens` (all that were
            wanted are there) or `context` (the KV caches are full). None before its end.
        stopped_by: the token or the text of the stops.

    Args:
        chip: the compiled model.
        prompt: token ids.
        tokens: how many at most; None: `DEFAULT_TOKENS`, or what fits.
        engine: one of `ENGINES`.
        stops: what ends it earlier.
        sampler: what chooses tokens; None: the first maximum of the logits.
        as_text: whether tokens are decoded.
        session: where tokens go; see `decode`.
        draft: guesses tokens; see `decode`.

    Raises:
        UserError: the prompt is empty, too long, or holds an unknown token id.
    """

    def __init__(
        self,
        chip: LoadedModel,
        prompt: Sequence[int],
        tokens: int | None = None,
        engine: str = "simulator",
        *,
        stops: Stops | None = None,
        sampler: Sampler | None = None,
        as_text: bool = False,
        session: Session | None = None,
        draft: Draft | None = None,
    ) -> None:
        from intaglio.runtime.text.decoding import decode

        self.stopped: Stopped | None = None
        self.stopped_by: int | str | None = None
        self._stops = stops or Stops()
        most, by_context = room(chip, prompt, tokens, engine)
        self._most: Stopped = "context" if by_context else "tokens"
        is_text = as_text or bool(self._stops.texts)
        self._decoder = chip.text_tokenizer.stream() if is_text else None
        self._held = ""
        self._stream = decode(chip, prompt, most, engine, sampler, session, draft)

    def __iter__(self) -> Iterator[tuple[Generated, str]]:
        """Each token with the text that it completes; the last may have none.

        The text that a token completes is held back as long as a stop may begin with it.
        """
        with closing(self._stream) as stream:
            for generated in stream:
                if generated.token in self._stops.ids:
                    self.stopped, self.stopped_by = "end_token", generated.token
                    yield generated, ""
                    return
                yield generated, self._push(generated.token)
                if self.stopped is not None:
                    return
        self.stopped = self._most

    def end(self) -> str:
        """The text that was held back, when the generation is over."""
        if self._decoder is None or isinstance(self.stopped_by, str):
            return ""
        return self._pass(self._decoder.end(), last=True)

    def _push(self, token: int) -> str:
        return "" if self._decoder is None else self._pass(self._decoder.push(token))

    def _pass(self, text: str, *, last: bool = False) -> str:
        """What may be shown when so much more text is there."""
        text = self._held + text
        self._held = ""
        found = [(place, one) for one in self._stops.texts if (place := text.find(one)) >= 0]
        if found:
            place, one = min(found)
            self.stopped, self.stopped_by = "end_token", one
            return text[:place]
        if not last:
            longest = max((_begun(text, one) for one in self._stops.texts), default=0)
            text, self._held = text[: len(text) - longest], text[len(text) - longest :]
        return text


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text a stop begins with."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
