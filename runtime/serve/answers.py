"""Answers in the form of OpenAI's API, whole and in parts.

Beside its keys each has `intaglio`, with what the chip did for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from intaglio.dialects.json_file import JSON
from intaglio.runtime.serve.engine import Finish, LogProb, Piece
from intaglio.runtime.serve.errors import RequestError

DONE = "data: [DONE]\n\n"
_UNKNOWN = "\ufffd"


@dataclass
class Writer:
    """Writes the answer to one request.

    Attributes:
        name: of the answer.
        model: that the request named.
        chat: whether it is a chat completion.
        created: seconds since 1970.
        about: what `intaglio` says besides the figures: engine, target, clock, adapter.
        word: the text of a token.
        fingerprint: of what is served.
        logprobs: whether they are wanted.
        token_ids: whether they are.
        usage: whether a last part says how many tokens there were.
    """

    name: str
    model: str
    chat: bool
    created: int
    about: dict[str, JSON]
    word: Callable[[int], str]
    fingerprint: str
    logprobs: bool = False
    token_ids: bool = False
    usage: bool = False
    _length: int = field(default=0, init=False)
    """Characters of the answer so far."""

    # In parts

    def begin(self) -> Iterator[str]:
        """What a stream begins with."""
        if self.chat:
            yield self._part({"role": "assistant", "content": ""})

    def part(self, piece: Piece) -> Iterator[str]:
        """What comes for a token; nothing for one that completes no text."""
        if piece.text or piece.logprob is not None or self.token_ids:
            delta: JSON = {"content": piece.text} if self.chat else piece.text
            more: dict[str, JSON] = {"token_ids": [piece.token]} if self.token_ids else {}
            yield self._part(delta, self._logprobs([piece]), more=more)

    def end(self, finish: Finish) -> Iterator[str]:
        """What a stream ends with."""
        if self.chat and finish.text:
            yield self._part({"content": finish.text})
        delta: JSON = {} if self.chat else finish.text
        top: dict[str, JSON] = {"intaglio": self._figures(finish)}
        yield self._part(delta, reason=finish.reason, top=top)
        if self.usage:
            content: dict[str, JSON] = {**self._head(stream=True), "choices": []}
            yield _line({**content, "usage": _usage(finish)})
        yield DONE

    @staticmethod
    def failed(error: RequestError) -> Iterator[str]:
        """What a stream ends with that cannot go on."""
        yield _line(error.content())

    def _part(
        self,
        delta: JSON,
        logprobs: JSON = None,
        *,
        reason: str | None = None,
        more: dict[str, JSON] | None = None,
        top: dict[str, JSON] | None = None,
    ) -> str:
        choice: dict[str, JSON] = {
            "index": 0,
            "delta" if self.chat else "text": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
            **(more or {}),
        }
        usage: dict[str, JSON] = {"usage": None} if self.usage else {}
        return _line({**self._head(stream=True), "choices": [choice], **usage, **(top or {})})

    # Whole

    def whole(self, pieces: Sequence[Piece], finish: Finish) -> dict[str, JSON]:
        """The answer in one."""
        text = "".join([*(piece.text for piece in pieces), finish.text])
        choice: dict[str, JSON] = {
            "index": 0,
            "logprobs": self._logprobs(pieces),
            "finish_reason": finish.reason,
        }
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        if self.token_ids:
            choice["token_ids"] = list(finish.tokens)
        return {
            **self._head(stream=False),
            "choices": [choice],
            "usage": _usage(finish),
            "intaglio": self._figures(finish),
        }

    def _head(self, *, stream: bool) -> dict[str, JSON]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if stream else "chat.completion"
        return {
            "id": self.name,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _figures(self, finish: Finish) -> dict[str, JSON]:
        clock = self.about["clock_hz"]
        assert isinstance(clock, int)
        alone, later = finish.prefill_cycles + finish.decode_cycles, len(finish.tokens) - 1
        return {
            **self.about,
            "prefill_cycles": finish.prefill_cycles,
            "decode_cycles": finish.decode_cycles,
            "seconds": alone / clock,
            "tokens_per_second": clock * later / finish.decode_cycles if later else None,
            "chip_cycles": finish.chip_cycles,
            "chip_seconds": finish.chip_cycles / clock,
            "adapter_cycles": finish.adapter_cycles,
            "saturations": finish.saturations,
            "host_seconds": round(finish.host_seconds, 6),
        }

    # Probabilities

    def _logprobs(self, pieces: Sequence[Piece]) -> JSON:
        if not self.logprobs:
            return None
        found = [piece.logprob for piece in pieces if piece.logprob is not None]
        if self.chat:
            return {"content": [self._chat_logprob(one) for one in found], "refusal": None}
        offsets: list[JSON] = []
        for piece in pieces:
            offsets.append(self._length)
            self._length += len(piece.text)
        return {
            "tokens": [self.word(one.token) for one in found],
            "token_logprobs": [one.value for one in found],
            "top_logprobs": [
                {self.word(token): value for token, value in reversed(one.top)} for one in found
            ],
            "text_offset": offsets,
        }

    def _chat_logprob(self, one: LogProb) -> JSON:
        top: list[JSON] = [self._chat_token(token, value) for token, value in one.top]
        return {**self._chat_token(one.token, one.value), "top_logprobs": top}

    def _chat_token(self, token: int, value: float) -> dict[str, JSON]:
        text = self.word(token)
        # Of a part of a character the bytes are not known from its text.
        raw = None if _UNKNOWN in text else list(text.encode())
        return {"token": text, "logprob": value, "bytes": raw}


def _usage(finish: Finish) -> dict[str, JSON]:
    count = len(finish.tokens)
    return {
        "prompt_tokens": finish.prompt,
        "completion_tokens": count,
        "total_tokens": finish.prompt + count,
    }


def _line(content: JSON) -> str:
    """An event of a stream."""
    return f"data: {json.dumps(content)}\n\n"
