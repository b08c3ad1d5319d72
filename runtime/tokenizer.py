"""Text to token ids and back: the model's `tokenizer.json`, or bytes where there is none."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from intaglio.dialects.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HubTokenizer

FILE = "tokenizer.json"


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

    def stream(self) -> Stream:
        """A new decoder."""
        ...


class ByteTokenizer:
    """One token for each byte of the text's UTF-8 form."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(text.encode("utf-8", errors="surrogateescape"))

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


class FileTokenizer:
    """A `tokenizer.json` of the tokenizers library.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HubTokenizer

        try:
            self._tokenizer: HubTokenizer = HubTokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"this is no tokenizer: {error}", file=str(path)) from error

    def encode(self, text: str, special: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=special).ids

    def stream(self) -> Stream:
        return _FileStream(self._tokenizer)


class _FileStream:
    def __init__(self, tokenizer: HubTokenizer) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        self._pending.append(token)
        text = self._stream.step(self._tokenizer, token)
        if text is None:
            return ""
        self._pending.clear()
        return text

    def end(self) -> str:
        return self._tokenizer.decode(self._pending) if self._pending else ""


def tokenizer_beside(model: Path) -> Tokenizer | None:
    """The tokenizer in the model's folder, if there is one."""
    path = model.parent / FILE
    return FileTokenizer(path) if path.is_file() else None
