"""Bodies of requests: what they ask for, and what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from intaglio.runtime.serve.errors import RequestError
from intaglio.runtime.serve.requests import Wanted, read_request

USER = {"role": "user", "content": "Hi"}


def text(**more: Any) -> Wanted:
    body = {"model": "m", "prompt": "x", **more}
    return read_request(json.dumps(body).encode(), chat=False)


def chat(*messages: Any, **more: Any) -> Wanted:
    body = {"model": "m", "messages": list(messages) or [USER], **more}
    return read_request(json.dumps(body).encode(), chat=True)


def test_what_is_not_said_is_as_in_openais_api():
    assert text() == Wanted("m", "x", tokens=16)
    assert chat() == Wanted("m", messages=[USER])
    null = dict.fromkeys(("temperature", "stop", "seed", "n", "stream", "logprobs", "user"))
    assert text(**null) == text()


def test_what_is_said():
    found = text(
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        seed=4,
        stop=["a", "12"],
        stop_token_ids=[3],
        ignore_eos=True,
        logprobs=2,
        stream=True,
        stream_options={"include_usage": True},
        return_token_ids=True,
        n=1,
        echo=False,
        logit_bias={},
        user="me",
    )
    assert found == Wanted(
        "m", "x", None, {}, 3, 0.5, 0.9, 7, 4, ["a", "12"], [3], False, 2, True, True, True
    )
    assert text(stop="a").stops == ["a"] and text(top_k=-1).top_k is None
    assert not text(stream_options={"include_usage": True}).usage
    assert (
        chat(max_completion_tokens=5, max_tokens=9).tokens == 5 and chat(max_tokens=9).tokens == 9
    )
    assert chat(logprobs=True).logprobs == 0 and chat(logprobs=True, top_logprobs=2).logprobs == 2
    assert chat(logprobs=False).logprobs is None
    options = chat(chat_template_kwargs={"a": [1]}, reasoning_effort="low").options
    assert options == {"a": [1], "reasoning_effort": "low"}


@pytest.mark.parametrize("prompt", ["x", [1, 2], ["x"], [[1, 2]]])
def test_prompts(prompt: Any):
    found = text(prompt=prompt).prompt
    assert found == (prompt[0] if isinstance(prompt[0], list) or prompt == ["x"] else prompt)


def test_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    said = {"role": "assistant", "content": "c", "refusal": None, "tool_calls": []}
    found = chat({"role": "developer", "content": parts, "name": "n"}, said).messages
    assert found == [
        {"role": "developer", "content": "a\nb", "name": "n"},
        {"role": "assistant", "content": "c"},
    ]


@pytest.mark.parametrize(
    ("more", "status", "param", "message"),
    [
        ({"temperature": 2.5}, 400, "temperature", "temperature is 2.5, not a number from 0 to 2"),
        ({"temperature": "hot"}, 400, "temperature", "is 'hot', not a number"),
        ({"temperature": float("nan")}, 400, "temperature", "not a finite number"),
        ({"top_p": -0.1}, 400, "top_p", "from 0 to 1"),
        ({"top_k": -2}, 400, "top_k", "not from 1 to"),
        ({"max_tokens": 0}, 400, "max_tokens", "not from 1 to"),
        ({"max_tokens": 1.5}, 400, "max_tokens", "not an integer"),
        ({"max_tokens": True}, 400, "max_tokens", "not an integer"),
        ({"max_tokens": 10**400}, 400, "max_tokens", "not from 1 to"),
        ({"seed": -1}, 400, "seed", "seed is -1"),
        ({"seed": 2**63}, 400, "seed", "seed is"),
        ({"stop": ""}, 400, "stop", "an empty text"),
        ({"stop": ["a"] * 17}, 400, "stop", "17 texts, more than 16"),
        ({"stop": [1]}, 400, "stop", "not a text"),
        ({"stop_token_ids": [-1]}, 400, "stop_token_ids", r"stop_token_ids\[0\]"),
        ({"stream": 1}, 400, "stream", "neither true nor false"),
        ({"stream_options": {"x": 1}}, 400, "stream_options", "unknown key 'x'"),
        ({"logprobs": 6}, 400, "logprobs", "from 0 to 5"),
        ({"prompt": []}, 400, "prompt", "neither a text nor token ids"),
        ({"prompt": {}}, 400, "prompt", "neither a text nor token ids"),
        ({"prompt": [[]]}, 400, "prompt", "neither a text nor token ids"),
        ({"prompt": [1, "a"]}, 400, "prompt", r"prompt\[1\]"),
        ({"prompt": None}, 400, "prompt", "a prompt is missing"),
        ({"prompt": "\ud800"}, 400, "prompt", "lone surrogate"),
        ({"prompt": ["a", "b"]}, 422, "prompt", "several prompts"),
        ({"model": ""}, 400, "model", "provide a model"),
        ({"model": 3}, 400, "model", "not a text"),
        ({"temprature": 1}, 400, "temprature", "did you mean 'temperature'"),
        ({"messages": []}, 400, "messages", "unrecognized request argument"),
        ({"n": 2}, 422, "n", "n is not supported"),
        ({"echo": True}, 422, "echo", "not supported"),
        ({"logit_bias": {"1": 5}}, 422, "logit_bias", "not supported"),
        ({"presence_penalty": 0.1}, 422, "presence_penalty", "not supported"),
    ],
)
def test_wrong_values(more: dict[str, Any], status: int, param: str, message: str):
    with pytest.raises(RequestError, match=message) as error:
        text(**more)
    assert (error.value.status, error.value.param) == (status, param)
    assert set(error.value.content()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("messages", "more", "status", "message"),
    [
        ([3], {}, 400, r"messages\[0\] is 3, not an object"),
        ([{"content": "x"}], {}, 400, r"messages\[0\] has no key 'role'"),
        ([{"role": "user"}], {}, 400, r"messages\[0\] has no content"),
        ([{"role": "king", "content": "x"}], {}, 400, "role is 'king', not one of system"),
        ([{"role": "tool", "content": "x"}], {}, 422, "tools are not supported"),
        ([{"role": "user", "content": 3}], {}, 400, r"messages\[0\].content is 3, not a list"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, 422, "only texts"),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, 400, "has no key 'text'"),
        ([{"role": "user", "content": "\udfff"}], {}, 400, "lone surrogate"),
        ([{**USER, "audio": {"id": "x"}}], {}, 422, "audio is not supported"),
        ([USER], {"tools": [{}]}, 422, "tools is not supported"),
        ([USER], {"response_format": {"type": "json_object"}}, 422, "not supported"),
        ([USER], {"top_logprobs": 1}, 400, "only with logprobs"),
        ([USER], {"logprobs": True, "top_logprobs": 21}, 400, "from 0 to 20"),
        ([USER], {"chat_template_kwargs": {"messages": []}}, 400, "no variable"),
        ([USER], {"chat_template_kwargs": {"a b": 1}}, 400, "no variable"),
        ([USER], {"prompt": "x"}, 400, "unrecognized request argument: prompt"),
    ],
)
def test_wrong_chats(messages: list[Any], more: dict[str, Any], status: int, message: str):
    with pytest.raises(RequestError, match=message) as error:
        chat(*messages, **more)
    assert error.value.status == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"[]",
        b'"x"',
        b'{"model": "m", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "m", "prompt": "\x01"}',
    ],
)
def test_no_json(body: bytes):
    with pytest.raises(RequestError) as error:
        read_request(body, chat=False)
    assert error.value.status == 400 and error.value.code == "invalid_json"
