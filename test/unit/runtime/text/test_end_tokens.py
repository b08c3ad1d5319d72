"""End tokens, from the files that exporters put beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from intaglio.runtime.text.end_tokens import EndTokens, end_tokens_beside
from intaglio.runtime.text.tokenizer import FileTokenizer

WORDS = {"a": 0, "b": 1, "</s>": 2, "<|im_end|>": 3}


def read(folder: Path, files: dict[str, Any], tokenizer: bool = True) -> EndTokens:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    found = None
    if tokenizer:
        path = folder / "tokenizer.json"
        Tokenizer(models.WordLevel(WORDS, unk_token="a")).save(str(path))
        found = FileTokenizer(path)
    return end_tokens_beside(folder / "model.onnx", found, 64)


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, {}),
        ({"genai_config.json": {"model": {"eos_token_id": 2, "pad_token_id": 9}}}, {2}),
        ({"genai_config.json": {"model": {"eos_token_id": [2, 5]}}}, {2, 5}),
        ({"generation_config.json": {"eos_token_id": [2, 5], "bos_token_id": 1}}, {2, 5}),
        ({"config.json": {"eos_token_id": 7}}, {7}),
        ({"config.json": {"text_config": {"eos_token_id": [7, 8]}, "vision_config": {}}}, {7, 8}),
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, {2}),
        ({"tokenizer_config.json": {"eos_token": {"content": "</s>", "lstrip": False}}}, {2}),
        ({"special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": "b"}}, {3}),
        (
            {
                "tokenizer_config.json": {
                    "eos_token": "<end>",
                    "added_tokens_decoder": {"60": {"content": "<end>"}},
                }
            },
            {60},
        ),
        ({"special_tokens_map.json": {"eos_token": "<e>"}, "added_tokens.json": {"<e>": 61}}, {61}),
        # A chat model whose files name different ends.
        (
            {
                "generation_config.json": {"eos_token_id": 2},
                "tokenizer_config.json": {"eos_token": "<|im_end|>"},
            },
            {2, 3},
        ),
        ({"generation_config.json": {"eos_token_id": None}}, {}),
        ({"generation_config.json": {"eos_token_id": -1}}, {}),
    ],
)
def test_where_they_stand(tmp_path: Path, files: dict[str, Any], ids: set[int]):
    found = read(tmp_path, files)
    assert set(found.ids) == set(ids) and found.warnings == ()
    assert found.special.issuperset(ids) and set(found.ids.values()) <= set(files)


def test_a_token_is_named_by_the_first_file(tmp_path: Path):
    files = {
        "genai_config.json": {"model": {"eos_token_id": 2}},
        "config.json": {"eos_token_id": 2},
    }
    assert read(tmp_path, files).ids == {2: "genai_config.json"}


def test_without_a_tokenizer(tmp_path: Path):
    files = {"tokenizer_config.json": {"eos_token": "</s>"}}
    found = read(tmp_path, files, tokenizer=False)
    assert not found.ids and "the end token '</s>' is no token" in found.warnings[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", {"eos_token_id": 64}, "eos_token_id is 64, no token of a voc"),
        ("generation_config.json", {"eos_token_id": True}, "eos_token_id is true, no token"),
        ("generation_config.json", {"eos_token_id": ["2"]}, 'eos_token_id is "2", no token'),
        ("generation_config.json", {"eos_token_id": 10**4000}, "eos_token_id is 1000"),
        ("genai_config.json", "{", "cannot be read, so its end tokens are not known"),
        ("config.json", "[" * 100_000, "cannot be read, so its end tokens are not known"),
        ("config.json", '{"eos_token_id": 1' + "0" * 5000 + "}", "cannot be read"),
        ("config.json", [1], "is no JSON object"),
        ("special_tokens_map.json", {"eos_token": "<none>"}, "the end token '<none>' is no token"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, name: str, content: Any, message: str):
    found = read(tmp_path, {name: content})
    assert not found.ids
    assert found.warnings[0].startswith(f"{tmp_path / name}: {message}")
