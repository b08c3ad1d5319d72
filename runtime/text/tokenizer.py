"""Text to token ids and back: the model's `tokenizer.json`, or bytes where there is none."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from intaglio.dialects.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HubTokenizer

FILE = "tokenizer.json"
BYTES = 256


class Stream(Protocol):
    """Decodes tokens one by one, as they are generated."""

    def push(self, token: int) -> str:
        """The text that a further token completes; may be empty."""
        ...

    def end(self) -> str:
        """The text of what was left incomplete."""
        ...


class Tokenizer(Protocol):
    """Encodes text and decodes tokens."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text, with the tokens that a model expects around it when `special`."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of the token that is written so; None where there is none."""
        ...

    def stream(self) -> Stream:
        """A new decoder."""
        ...


class ByteTokenizer:
    """One token for each byte of the text's UTF-8 form."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(text.encode("utf-8", errors="surrogateescape"))

    def id_of(self, token: str) -> int | None:
        ids = self.encode(token)
        return ids[0] if len(ids) == 1 else None

    def stream(self) -> Stream:
        return _ByteStream()


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        if token < 256:
            return self._decoder.decode(bytes([token]))
        return self._decoder.decode(b"", final=True) + f"<{token}>"

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class NotText(UserError):
    """Bytes are to be encoded that are no text, by a tokenizer of texts."""


class FileTokenizer:
    """A `tokenizer.json` of the tokenizers library.

    The file also keeps settings of whoever wrote it last: truncation and padding, which belong to a
    training's batches, and dropout, which splits words at random. None of them is applied.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HubTokenizer
        from tokenizers.models import BPE

        self._path = path
        with _as_user_error(path, "this is no tokenizer"):
            self._tokenizer: HubTokenizer = HubTokenizer.from_file(str(path))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            if isinstance(model := self._tokenizer.model, BPE) and model.dropout is not None:
                model.dropout = None

    def encode(self, text: str, special: bool = True) -> list[int]:
        what = f"the tokenizer cannot encode {_shown(text)}"
        if not _is_text(text):
            raise NotText(f"{what}: it is not UTF-8 text", file=str(self._path))
        with _as_user_error(self._path, what):
            return self._tokenizer.encode(text, add_special_tokens=special).ids

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token) if _is_text(token) else None

    def stream(self) -> Stream:
        return _FileStream(self._path, self._tokenizer)


def _is_text(text: str) -> bool:
    """Whether no byte stands in it as a surrogate, because it was no UTF-8."""
    return text.isprintable() or not any("\ud800" <= letter <= "\udfff" for letter in text)


class _FileStream:
    def __init__(self, path: Path, tokenizer: HubTokenizer) -> None:
        from tokenizers.decoders import DecodeStream

        self._path = path
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        self._pending.append(token)
        with _as_user_error(self._path, f"the tokenizer cannot decode token {token}"):
            text = self._stream.step(self._tokenizer, token)
        if text is None:
            return ""
        self._pending.clear()
        return text

    def end(self) -> str:
        with _as_user_error(self._path, f"the tokenizer cannot decode {self._pending}"):
            return self._tokenizer.decode(self._pending) if self._pending else ""


_SHOWN = 60
"""Characters of a text that a message shows."""


def _shown(text: str) -> str:
    return f"{text!a}" if len(text) <= _SHOWN else f"{text[:_SHOWN]!a}..."


@contextmanager
def _as_user_error(path: Path, what: str) -> Iterator[None]:
    """Turns what the tokenizers library raises into a `UserError`.

    It raises plain `Exception`, and where its own code fails `PanicException`, which is none.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        cause = str(error).strip().splitlines()
        reason = cause[0] if cause else type(error).__name__
        raise UserError(
            f"{what}: {reason}",
            file=str(path),
            hint="give token ids, or the tokenizer.json that the model was made with",
        ) from error


def tokenizer_beside(model: Path) -> Tokenizer | None:
    """The tokenizer in the model's folder, if there is one."""
    path = model.parent / FILE
    return FileTokenizer(path) if path.is_file() else None
