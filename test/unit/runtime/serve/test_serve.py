"""`intaglio serve` as its clients see it: answers, streams, errors, limits, departures, its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest

from intaglio.runtime import cli
from intaglio.runtime.chip import Chip

PROMPT = "Then Moses"
LONG = 100


def reply(server: Any, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON (or text) of a request that no client library made."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    if isinstance(body, dict):
        body = json.dumps(body)
    try:
        connection.request(
            method, path, body, {"Content-Type": "application/json"} | headers, encode_chunked=True
        )
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    is_json = answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(content) if is_json else content.decode()


def metric(server: Any, line: str) -> float:
    text = reply(server, "GET", "/metrics")[1]
    found = [one.rpartition(" ")[2] for one in text.splitlines() if one.rpartition(" ")[0] == line]
    return float(found[0]) if found else 0.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def generated(chip: Chip, prompt: str, tokens: int, **options: Any) -> str:
    return chip.decode(chip.generate(prompt, tokens, **options))


# --- answers ------------------------------------------------------------------------------------


def test_models(server: Any):
    client = server.client()
    listed = client.models.list().data
    assert [one.id for one in listed] == ["base", "devil", "python"]
    assert listed[0].object == "model" and listed[0].owned_by == "intaglio"
    assert client.models.retrieve("devil").intaglio["adapter"] == "devil"
    with pytest.raises(openai.NotFoundError, match=r"no model 'davil'.*did you mean 'devil'"):
        client.models.retrieve("davil")
    assert reply(server, "GET", "/health") == (
        200,
        {"status": "ok", "engine": "simulator", "model": "base"},
    )


@pytest.mark.parametrize("model", ["base", "devil"])
def test_a_completion_is_what_run_says(server: Any, model: str):
    adapter = None if model == "base" else model
    expected = server.chip.run(PROMPT, 12, adapter=adapter)
    answer = server.client().completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=12,
        temperature=0,
        extra_body={"return_token_ids": True},
    )
    (choice,) = answer.choices
    assert choice.token_ids == expected["tokens"] and choice.text == expected["text"]
    assert (choice.finish_reason, answer.model) == ("length", model)
    usage = answer.usage
    count = len(PROMPT)
    assert (usage.prompt_tokens, usage.completion_tokens) == (count, 12)
    assert usage.total_tokens == count + 12
    figures = answer.intaglio
    assert figures["prefill_cycles"] == expected["prefill_cycles"]
    assert figures["decode_cycles"] == sum(expected["cycles"][1:])
    assert figures["tokens_per_second"] == pytest.approx(expected["tokens_per_second"])
    alone = figures["prefill_cycles"] + figures["decode_cycles"]
    assert figures["seconds"] == alone / expected["clock_hz"]
    assert figures["chip_cycles"] == alone + figures["adapter_cycles"]
    assert figures["adapter"] == adapter and figures["engine"] == "simulator"


def test_ids_are_prompts(server: Any):
    answer = server.client().completions.create(
        model="base", prompt=list(PROMPT.encode()), max_tokens=5, temperature=0
    )
    assert answer.choices[0].text == generated(server.chip, PROMPT, 5)


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_says_the_same(server: Any, usage: bool):
    client, expected = server.client(), generated(server.chip, PROMPT, 20)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    parts = list(
        client.completions.create(
            model="base", prompt=PROMPT, max_tokens=20, temperature=0, stream=True, **options
        )
    )
    assert "".join(one.choices[0].text for one in parts if one.choices) == expected
    if usage:
        assert parts[-1].choices == [] and parts[-1].usage.completion_tokens == 20
        assert all(one.usage is None for one in parts[:-1])
        parts.pop()
    assert [one.choices[0].finish_reason for one in parts] == [None] * 20 + ["length"]
    assert parts[-1].intaglio["prefill_cycles"] > 0
    assert len({one.id for one in parts}) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", [" unto", ["xyz", "o t", "unto th"], ["12", "t"]])
def test_stops(server: Any, stop: Any, stream: bool):
    full = generated(server.chip, PROMPT, 40)
    stops = [stop] if isinstance(stop, str) else stop
    # The first to be whole.
    end = min((full.find(one) + len(one), full.find(one)) for one in stops if one in full)[1]
    answer = server.client().completions.create(
        model="base", prompt=PROMPT, max_tokens=40, temperature=0, stop=stop, stream=stream
    )
    parts = list(answer) if stream else [answer]
    assert "".join(one.choices[0].text for one in parts) == full[:end]
    assert parts[-1].choices[0].finish_reason == "stop"


def test_stops_by_id(server: Any):
    tokens = server.chip.generate(PROMPT, 20)
    answer = server.client().completions.create(
        model="base",
        prompt=PROMPT,
        max_tokens=20,
        temperature=0,
        extra_body={"stop_token_ids": [tokens[4]]},
    )
    assert answer.usage.completion_tokens == tokens.index(tokens[4]) + 1
    assert answer.choices[0].finish_reason == "stop"


def test_draws_are_those_of_run(server: Any):
    client = server.client()

    def drawn(**options: Any) -> str:
        answer = client.completions.create(model="base", prompt=PROMPT, max_tokens=16, **options)
        return answer.choices[0].text

    assert drawn(seed=7) == generated(server.chip, PROMPT, 16, temperature=1, seed=7)
    own = {"temperature": 1.5, "top_p": 0.8, "seed": 3}
    assert drawn(**own, extra_body={"top_k": 9}) == generated(
        server.chip, PROMPT, 16, top_k=9, **own
    )
    assert drawn(seed=1) != drawn(seed=2)
    assert len({drawn() for _ in range(3)}) > 1


def test_logprobs(server: Any):
    chip = server.chip
    (first, *_) = chip.stream(chip.encode(PROMPT), 1)
    exact = first.logits.astype(float)
    values = exact - np.log(np.exp(exact - exact.max()).sum()) - exact.max()
    best = np.argsort(-values, kind="stable")[:2].tolist()
    client = server.client()
    options: dict[str, Any] = {"model": "base", "max_tokens": 3, "temperature": 0}
    found = client.completions.create(prompt=PROMPT, logprobs=2, **options).choices[0].logprobs
    text = generated(chip, PROMPT, 3)
    assert found.tokens == list(text) and found.text_offset == [0, 1, 2]
    assert found.token_logprobs[0] == pytest.approx(values[best[0]])
    assert found.top_logprobs[0] == pytest.approx({chr(one): values[one] for one in best})
    parts = client.completions.create(prompt=PROMPT, logprobs=0, stream=True, **options)
    streamed = [one.choices[0].logprobs for one in parts if one.choices[0].logprobs]
    assert [one.token_logprobs for one in streamed] == [[one] for one in found.token_logprobs]
    assert [one.text_offset for one in streamed] == [[0], [1], [2]]
    chat = client.chat.completions.create(
        messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2, **options
    )
    content = chat.choices[0].logprobs.content
    assert "".join(one.token for one in content) == chat.choices[0].message.content
    assert content[0].top_logprobs[0].logprob == content[0].logprob
    assert content[0].bytes == list(content[0].token.encode())


# --- chats --------------------------------------------------------------------------------------

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Who art thou?"}]},
]


@pytest.mark.parametrize("model", ["base", "python"])
def test_a_chat(server: Any, model: str):
    client = server.client()
    adapter = None if model == "base" else model
    expected = generated(server.chip, "s:Be brief.;u:Who art thou?;a:", 16, adapter=adapter)
    options: dict[str, Any] = {"model": model, "temperature": 0, "max_completion_tokens": 16}
    whole = client.chat.completions.create(messages=MESSAGES, **options)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].message.role == "assistant"
    parts = list(client.chat.completions.create(messages=MESSAGES, stream=True, **options))
    assert parts[0].choices[0].delta.role == "assistant" and not parts[0].choices[0].delta.content
    assert "".join(one.choices[0].delta.content or "" for one in parts) == expected
    assert parts[-1].choices[0].finish_reason == "length"
    assert parts[-1].choices[0].delta.content is None
    developer = [{"role": "developer", "content": "Be brief."}, MESSAGES[1]]
    again = client.chat.completions.create(messages=developer, **options)
    assert again.choices[0].message.content == expected


def test_the_clients_own_stream(server: Any):
    stream = server.client().chat.completions.stream(
        model="base", messages=MESSAGES, temperature=0, max_tokens=40, stop=["e"]
    )
    with stream as events:
        text = "".join(one.delta for one in events if one.type == "content.delta")
        final = events.get_final_completion()
    assert final.choices[0].message.content == text and "e" not in text


def test_without_a_limit_a_chat_fills_the_context(server: Any):
    answer = server.client().chat.completions.create(
        model="base", messages=[{"role": "user", "content": "x" * 80}], temperature=0
    )
    capacity = server.chip.program.capacity
    assert answer.usage.total_tokens == capacity + 1
    assert answer.choices[0].finish_reason == "length"


def test_options_of_the_template(server: Any):
    def text(**body: Any) -> str:
        answer = server.client().chat.completions.create(
            model="base", messages=[MESSAGES[0]], temperature=0, max_tokens=8, extra_body=body
        )
        return answer.choices[0].message.content

    expected = generated(server.chip, "s:Be brief.;A", 8)
    assert text(chat_template_kwargs={"open": "A"}) == expected
    expected = generated(server.chip, "s:Be brief.;", 8)
    assert text(add_generation_prompt=False) == expected


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "chat", "options", "message"),
    [
        (openai.NotFoundError, False, {"model": "gpt"}, "no model 'gpt'"),
        (openai.BadRequestError, False, {"prompt": ""}, "the prompt is empty"),
        (openai.BadRequestError, False, {"prompt": [999]}, "token id 999 is out of range"),
        (openai.BadRequestError, False, {"prompt": "x" * 161}, "161 tokens, the KV caches hold"),
        (openai.BadRequestError, False, {"max_tokens": 161}, "need 161 positions"),
        (openai.BadRequestError, False, {"extra_body": {"stop_token_ids": [256]}}, "no token id"),
        (openai.BadRequestError, False, {"temperature": 3}, "from 0 to 2"),
        (openai.UnprocessableEntityError, False, {"n": 2}, "n is not supported"),
        (openai.UnprocessableEntityError, True, {"tools": [{}]}, "tools is not supported"),
        (
            openai.BadRequestError,
            True,
            {"extra_body": {"chat_template_kwargs": {"open": {}}, "max_tokens": 999}},
            "need 1",
        ),
    ],
)
def test_refusals(server: Any, family: Any, chat: bool, options: dict[str, Any], message: str):
    client = server.client()
    common = {"model": "base", "max_tokens": 1, **options}
    with pytest.raises(family, match=message) as error:
        if chat:
            client.chat.completions.create(**{"messages": MESSAGES, **common})
        else:
            client.completions.create(**{"prompt": "x", **common})
    assert error.value.type == "invalid_request_error" and error.value.body["message"]


def test_the_template_refuses(server: Any, chatting: Path, serve: Any, tmp_path: Path):
    file = tmp_path / "t.jinja"
    file.write_text("developer {{ raise_exception('only users: ' + messages[0].role) }}")
    messages = [{"role": "developer", "content": "x"}]
    with (
        serve(chatting, "--chat-template", str(file)) as other,
        pytest.raises(openai.BadRequestError, match="refuses this: only users: developer"),
    ):
        other.client().chat.completions.create(model="out", messages=messages)


def test_without_a_template_chats_are_refused(compiled: Callable[[str], Path], serve: Any):
    with serve(compiled("llama"), "--name", "l") as other:
        with pytest.raises(openai.UnprocessableEntityError, match="has no chat template"):
            other.client().chat.completions.create(model="l", messages=MESSAGES)
        assert reply(other, "GET", "/v1/models/l")[1]["intaglio"]["chat"] is False


def chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b" " * 5_000


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("POST", "/v1/completions", b"{", {}, 400, "invalid_json"),
        ("POST", "/v1/completions", b"[" * 15_000, {}, 400, "invalid_json"),
        ("POST", "/v1/completions", b"\xff", {}, 400, "invalid_json"),
        ("POST", "/v1/completions", b"", {}, 400, "invalid_json"),
        ("POST", "/v1/completions", b"{}", {"Content-Type": "text/plain"}, 400, None),
        ("POST", "/v1/completions", b"{}", {"Host": "example.com"}, 400, "invalid_host"),
        ("POST", "/v1/completions", b" " * 20_001, {}, 413, "body_too_large"),
        ("POST", "/v1/chat/completions", b" " * 900_000, {}, 413, "body_too_large"),
        ("POST", "/v1/completions", chunks, {}, 413, "body_too_large"),
        ("POST", "/v1/embeddings", b"{}", {}, 404, "unknown_url"),
        ("GET", "/v1/completions", None, {}, 405, None),
        ("DELETE", "/v1/models/base", None, {}, 405, None),
        ("GET", "/", None, {}, 404, "unknown_url"),
        ("GET", "/v1/models/..%2f..%2fetc", None, {}, 404, "model_not_found"),
    ],
)
def test_what_is_no_request(
    server: Any,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    code: str | None,
):
    body = body(50) if callable(body) else body
    try:
        found, content = reply(server, method, path, body, **headers)
    except (BrokenPipeError, ConnectionResetError):
        # The server does not read on, and may say so before all is sent.
        assert status == 413
        return
    assert (found, content["error"]["code"]) == (status, code)
    assert content["error"]["message"]


def test_broken_connections_harm_nobody(server: Any):
    netloc = urlsplit(server.url)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    for data in (
        b"",
        b"\x00\xff\x16\x03",
        head,
        head + b"Content-Length: 100\r\nContent-Type: application/json\r\n\r\n{",
        head + b"Content-Length: -5\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with socket.create_connection((netloc.hostname, netloc.port)) as one:
            one.sendall(data)
    test_ids_are_prompts(server)


# --- many clients -------------------------------------------------------------------------------


def test_clients_at_once(server: Any):
    """More than have places; with adapters, streams and draws; each gets what it gets alone."""
    random = np.random.default_rng(5)
    asked = [
        {
            "model": ["base", "devil", "python"][random.integers(3)],
            "prompt": PROMPT[: random.integers(1, 10)],
            "max_tokens": int(random.integers(1, 24)),
            "temperature": float(random.integers(2)),
            "seed": int(random.integers(99)),
        }
        for _ in range(16)
    ]

    def ask(one: dict[str, Any]) -> str:
        parts = server.client().completions.create(stream=True, **one)
        return "".join(part.choices[0].text for part in parts)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, asked))
    for one, text in zip(asked, found, strict=True):
        options = {name: one[name] for name in ("temperature", "seed")}
        adapter = None if one["model"] == "base" else one["model"]
        assert text == generated(
            server.chip, one["prompt"], one["max_tokens"], adapter=adapter, **options
        )


def test_turns(server: Any):
    """A short answer does not wait for a long one that began before it."""
    client = server.client()
    long = client.completions.create(
        model="base", prompt="x", max_tokens=LONG, temperature=0, stream=True
    )
    next(iter(long))
    short = client.completions.create(model="devil", prompt="x", max_tokens=3, temperature=0)
    figures = short.intaglio
    assert figures["chip_cycles"] > figures["prefill_cycles"] + figures["decode_cycles"]
    rest = list(long)
    assert len(rest) > 1 and rest[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_goes_away(server: Any, stream: bool):
    line = 'intaglio_answers_total{ended="cancelled"}'
    before = metric(server, line)
    netloc = urlsplit(server.url)
    body = {"model": "base", "prompt": "x", "max_tokens": 150, "temperature": 0, "stream": stream}
    data = json.dumps({**body, "ignore_eos": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((netloc.hostname, netloc.port)) as one:
        one.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        if stream:
            one.recv(100)
        else:
            until(lambda: metric(server, "intaglio_users") == 1)
    until(lambda: metric(server, line) == before + 1)
    assert metric(server, "intaglio_users") == 0


def test_a_full_queue(chatting: Path, serve: Any):
    options = {"model": "out", "prompt": "x", "max_tokens": 150, "temperature": 0}
    with serve(chatting, "--users", "1", "--queue", "1", "--max-tokens", "150") as other:
        client = other.client()
        first = client.completions.create(stream=True, **options)
        next(iter(first))
        waiting = client.completions.create(stream=True, **options)
        until(lambda: metric(other, "intaglio_queue") == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests are being answered"):
            client.completions.create(**options)
        waiting.close()
        # Who leaves makes room for the next.
        patient = openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", max_retries=9)
        answer = patient.completions.create(**{**options, "max_tokens": 2})
        assert answer.usage.completion_tokens == 2
        with pytest.raises(openai.BadRequestError, match="gives at most 150 tokens"):
            client.completions.create(**{**options, "max_tokens": 151})
        assert other.stop() == (128 + signal.SIGTERM, "stopped\n")


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_end_waits_for_answers(chatting: Path, serve: Any, number: signal.Signals):
    with serve(chatting) as other:
        stream = other.client().completions.create(
            model="out", prompt="x", max_tokens=LONG, temperature=0, stream=True
        )
        parts = [next(iter(stream))]
        other.process.send_signal(number)
        parts += list(stream)
        text = "".join(one.choices[0].text for one in parts)
        assert text == generated(other.chip, "x", LONG)
        _, said = other.process.communicate(timeout=30)
        assert other.process.returncode == 128 + number
        assert said == {signal.SIGTERM: "stopped\n", signal.SIGINT: "interrupted\n"}[number]


def test_its_end_does_not_wait_for_ever(chatting: Path, serve: Any):
    with serve(chatting, "--grace", "0") as other:
        stream = other.client().completions.create(
            model="out", prompt="x", max_tokens=150, temperature=0, stream=True
        )
        next(iter(stream))
        start = time.monotonic()
        assert other.stop()[0] == 128 + signal.SIGTERM
        assert time.monotonic() - start < 5
        with contextlib.suppress(openai.APIError, Exception):
            list(stream)


def test_hardware_serves_too(compiled: Callable[[str], Path], serve: Any):
    out = compiled("llama")
    with serve(out, "--engine", "rtl", "--name", "l") as other:
        options = {"model": "l", "prompt": [5, 6], "temperature": 0, "max_tokens": 2}
        ids = {"return_token_ids": True}
        for prompt in ([5, 6], [7]):
            answer = other.client().completions.create(
                **{**options, "prompt": prompt}, extra_body=ids
            )
            assert answer.choices[0].token_ids == other.chip.generate(prompt, 2)
            assert answer.intaglio["engine"] == "rtl"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port 70000: not a number from 0 to 65535"),
        (["--users", "0"], "--users 0: not a number from 1"),
        (["--engine", "rtl", "--users", "2"], "rtl keeps one sequence at a time"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: "),
        (["--name", "devil"], "the base and an adapter are both called 'devil'"),
        (["--chat-template", "nothing.jinja"], "nothing.jinja: cannot be read"),
    ],
)
def test_options(chatting: Path, capsys: Any, options: list[str], message: str):
    assert cli.main(["serve", str(chatting), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(server: Any, chatting: Path, capsys: Any):
    port = str(urlsplit(server.url).port)
    assert cli.main(["serve", str(chatting), "--port", port]) == 1
    said = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in said


def test_tokens_without_texts(compiled: Callable[[str], Path], capsys: Any):
    assert cli.main(["serve", str(compiled("tied"))]) == 1
    assert "has no tokenizer.json" in capsys.readouterr().err


def test_without_the_extra(chatting: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    find = "importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None if name != "jinja2" else sys)
    assert cli.main(["serve", str(chatting)]) == 1
    said = capsys.readouterr().err
    assert "intaglio serve needs starlette and uvicorn, which is not installed" in said
    assert "help: pip install 'intaglio[serve]'" in said
