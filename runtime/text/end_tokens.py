"""Which tokens end a text, by the files beside the model.

Exporters write them to `genai_config.json` (onnxruntime-genai), `generation_config.json` and
`config.json` (transformers), as ids; `tokenizer_config.json` and `special_tokens_map.json` name
them as texts. All that any of them names end a generation: a chat model often has several, and the
files do not always agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from intaglio.dialects.json_file import JSON
from intaglio.runtime.text.tokenizer import Tokenizer

_IDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "genai_config.json": (("model",),),
    "generation_config.json": ((),),
    "config.json": ((), ("text_config",)),
}
"""Files with ids, and the objects in them that have the keys."""
_TEXTS = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that name tokens by their texts."""
_ROLES = ("bos", "eos", "pad", "unk")
_LARGEST = 64 << 20
"""Bytes of a file that is read."""


@dataclass(frozen=True)
class EndTokens:
    """What the files beside a model say.

    Attributes:
        ids: the tokens that end a text, each with the first file that names it.
        special: all tokens to which a file gives a role: those, and what begins and pads texts.
        warnings: what was found but cannot be used.
    """

    ids: Mapping[int, str]
    special: frozenset[int]
    warnings: tuple[str, ...]


def end_tokens_beside(model: Path, tokenizer: Tokenizer | None, vocabulary: int) -> EndTokens:
    """Reads the files beside a model.

    Args:
        model: the ONNX file.
        tokenizer: the model's, for tokens that are named by their texts.
        vocabulary: tokens of the model.
    """
    reader = _Reader(model.parent, tokenizer, vocabulary)
    for name, places in _IDS.items():
        for place in places:
            reader.read_ids(name, place)
    for name in _TEXTS:
        reader.read_texts(name)
    return EndTokens(reader.ends, frozenset(reader.special), tuple(reader.warnings))


def special_texts(content: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    """Roles and texts of the tokens that a file names by their texts."""
    for role in _ROLES:
        given = content.get(f"{role}_token")
        text = given.get("content") if isinstance(given, dict) else given
        if isinstance(text, str):
            yield role, text


class _Reader:
    def __init__(self, folder: Path, tokenizer: Tokenizer | None, vocabulary: int) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.ends: dict[int, str] = {}
        self.special: set[int] = set()
        self.warnings: list[str] = []
        self._files: dict[str, dict[str, JSON]] = {}

    def read_ids(self, name: str, place: tuple[str, ...]) -> None:
        content: JSON = self._content(name)
        for key in place:
            content = content.get(key) if isinstance(content, dict) else None
        if not isinstance(content, dict):
            return
        for role in _ROLES:
            key = f"{role}_token_id"
            given = content.get(key)
            for value in given if isinstance(given, list) else [given]:
                if value is not None:
                    self._add(name, key, value, ends=role == "eos")

    def read_texts(self, name: str) -> None:
        content = self._content(name)
        for role, text in special_texts(content):
            if (token := self._id_of(text)) is not None:
                self._add(name, f"{role}_token", token, ends=role == "eos")
            elif role == "eos":
                self._warn(name, f"the end token '{text}' is no token of the tokenizer")

    def _id_of(self, text: str) -> int | None:
        for token in self._added():
            if token[0] == text:
                return token[1]
        return None if self.tokenizer is None else self.tokenizer.id_of(text)

    def _added(self) -> Iterator[tuple[JSON, int]]:
        """Texts and ids of the tokens that files list beside the vocabulary."""
        listed = self._content("tokenizer_config.json").get("added_tokens_decoder")
        for key, value in listed.items() if isinstance(listed, dict) else ():
            if key.isdecimal() and len(key) < 10 and isinstance(value, dict):
                yield value.get("content"), int(key)
        for key, value in self._content("added_tokens.json").items():
            if type(value) is int:
                yield key, value

    def _add(self, name: str, key: str, value: JSON, *, ends: bool) -> None:
        if type(value) is int and 0 <= value < self.vocabulary:
            self.special.add(value)
            if ends:
                self.ends.setdefault(value, name)
        # -1 and the like stand for "none", and a padding token is of no use here.
        elif ends and value != -1:
            shown = json.dumps(value)[:40]
            what = f"{key} is {shown}, no token of a vocabulary of {self.vocabulary}"
            self._warn(name, what)

    def _content(self, name: str) -> dict[str, JSON]:
        if name not in self._files:
            self._files[name] = self._read(name)
        return self._files[name]

    def _read(self, name: str) -> dict[str, JSON]:
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            if path.stat().st_size > _LARGEST:
                self._warn(name, f"is larger than {_LARGEST >> 20} MiB, so it is not read")
                return {}
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            self._warn(name, f"cannot be read, so its end tokens are not known: {error}")
            return {}
        if not isinstance(content, dict):
            self._warn(name, "is no JSON object, so its end tokens are not known")
            return {}
        return content

    def _warn(self, name: str, what: str) -> None:
        self.warnings.append(f"{self.folder / name}: {what}")
