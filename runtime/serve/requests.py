"""The body of a request for a completion: what is asked for, or what is wrong with it.

Keys are those of OpenAI's API, some of others' (`top_k`, `stop_token_ids`, `ignore_eos`,
`return_token_ids`, `chat_template_kwargs`). One that would change the answer and is not supported
is refused unless it has the value that changes nothing; an unknown one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from intaglio.dialects.errors import UserError, meant
from intaglio.dialects.json_file import JSON, JSONFile, parse_json
from intaglio.runtime.serve.errors import RequestError

T = TypeVar("T")

DEFAULT_TOKENS = 16
"""Of a text completion that does not say how many, as in OpenAI's API."""
_MOST = (1 << 31) - 1
_STOPS = 16
_LOGPROBS, _CHAT_LOGPROBS = 5, 20
_SEEDS = (1 << 63) - 1

_ROLES = ("system", "developer", "user", "assistant")
_IDLE = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    ]
)
"""Keys that are for the one who serves, and change no answer."""
_NEUTRAL: Mapping[str, tuple[JSON, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "verbosity": ("medium",),
}
"""Keys of OpenAI's API that are not supported, with the values that change nothing."""
_COMMON = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "logprobs",
    "return_token_ids",
]
_OF_TEXT = ("prompt",)
_OF_CHAT = [
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "chat_template_kwargs",
    "reasoning_effort",
    "add_generation_prompt",
]


@dataclass(frozen=True)
class Wanted:
    """What a request asks for.

    Attributes:
        model: its name.
        prompt: of a text completion; a text or token ids.
        messages: of a chat completion; else None.
        options: variables of the chat template.
        tokens: how many at most; None: what fits.
        temperature, top_p, top_k, seed: of the draws; seed None: any.
        stops: texts that end the answer.
        stop_ids: tokens that do.
        end_tokens: whether the model's own end tokens do.
        logprobs: of how many likeliest tokens to tell, besides the one taken; None: of none.
        stream: whether the answer comes in parts.
        usage: whether a last part says how many tokens there were.
        token_ids: whether to give them too.
    """

    model: str
    prompt: str | Sequence[int] = ""
    messages: Sequence[Mapping[str, JSON]] | None = None
    options: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stops: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    end_tokens: bool = True
    logprobs: int | None = None
    stream: bool = False
    usage: bool = False
    token_ids: bool = False


class _Body:
    """The keys of a body, read by kind."""

    def __init__(self, body: bytes) -> None:
        try:
            self._all = JSONFile(parse_json(body, "the body"), "the body")
            self._names = self._all.names()
        except UserError as error:
            raise RequestError(400, f"the body {error.what}", code="invalid_json") from error

    def check(self, known: Sequence[str]) -> None:
        """Whether all keys are known, and those that are not supported change nothing."""
        for name in self._names:
            if name in known or name in _IDLE:
                continue
            value = self._all.get(name)
            if name in _NEUTRAL:
                if value is None or value.value in _NEUTRAL[name]:
                    continue
                raise RequestError(
                    422, f"{name} is not supported by this server", param=name, code="unsupported"
                )
            raise RequestError(
                400,
                f"unrecognized request argument: {name[:64]} "
                f"({meant(name, known)}known are {', '.join(known)})",
                param=name[:64],
                code="unknown_parameter",
            )

    def get(self, name: str, read: Callable[[JSONFile], T], default: T) -> T:
        """The value of a key as a function reads it; the default where it is missing or null.

        Raises:
            RequestError: it is of another kind.
        """
        value = self._all.get(name)
        if value is None:
            return default
        try:
            return read(value)
        except UserError as error:
            raise RequestError(400, error.what, param=name, code="invalid_value") from error


def read_request(body: bytes, *, chat: bool) -> Wanted:
    """What the body of a request asks for.

    Raises:
        RequestError: says what is wrong with it.
    """
    read = _Body(body)
    read.check([*_COMMON, *(_OF_CHAT if chat else _OF_TEXT)])
    model = read.get("model", JSONFile.text, "")
    if not model:
        raise RequestError(400, "you must provide a model", param="model", code="missing")
    stream = read.get("stream", JSONFile.boolean, False)
    tokens = read.get("max_tokens", _some, None if chat else DEFAULT_TOKENS)
    if chat:
        tokens = read.get("max_completion_tokens", _some, tokens)
    # As elsewhere: -1 and 0 are no limit.
    top_k = read.get("top_k", lambda one: None if one.value in (-1, 0) else _some(one), None)
    return Wanted(
        model=model,
        prompt="" if chat else _prompt(read),
        messages=_messages(read) if chat else None,
        options=_options(read) if chat else {},
        tokens=tokens,
        temperature=read.get("temperature", _between(0, 2), 1.0),
        top_p=read.get("top_p", _between(0, 1), 1.0),
        top_k=top_k,
        seed=read.get("seed", lambda one: one.integer(0, _SEEDS), None),
        stops=read.get("stop", _stops, ()),
        stop_ids=read.get("stop_token_ids", JSONFile.counts, ()),
        end_tokens=not read.get("ignore_eos", JSONFile.boolean, False),
        logprobs=_chat_logprobs(read) if chat else read.get("logprobs", _few(_LOGPROBS), None),
        stream=stream,
        usage=read.get("stream_options", _usage, False) and stream,
        token_ids=read.get("return_token_ids", JSONFile.boolean, False),
    )


def _between(low: float, high: float) -> Callable[[JSONFile], float]:
    def read(one: JSONFile) -> float:
        value = one.number()
        if not low <= value <= high:
            raise one.error(f"is {value:g}, not a number from {low:g} to {high:g}")
        return float(value)

    return read


def _few(most: int) -> Callable[[JSONFile], int]:
    return lambda one: one.integer(0, most)


def _some(one: JSONFile) -> int:
    return one.integer(1, _MOST)


def _stops(one: JSONFile) -> Sequence[str]:
    found = [one.value] if isinstance(one.value, str) else one.texts()
    if len(found) > _STOPS:
        raise one.error(f"has {len(found)} texts, more than {_STOPS}")
    if not all(found):
        raise one.error("has an empty text, which is everywhere")
    return found


def _usage(one: JSONFile) -> bool:
    one = one.only("include_usage", "include_obfuscation")
    value = one.get("include_usage")
    return value is not None and value.boolean()


def _chat_logprobs(read: _Body) -> int | None:
    wanted = read.get("logprobs", JSONFile.boolean, False)
    most = read.get("top_logprobs", _few(_CHAT_LOGPROBS), None)
    if most is not None and not wanted:
        raise RequestError(400, "top_logprobs: only with logprobs", param="top_logprobs")
    return (most or 0) if wanted else None


def _options(read: _Body) -> Mapping[str, JSON]:
    def given(one: JSONFile) -> dict[str, JSON]:
        for name in one.names():
            if not name.isidentifier() or name == "messages":
                raise one.error(f"has the key '{name[:40]}', which is no variable to be set")
        return {name: value.value for name, value in one.items()}

    found = read.get("chat_template_kwargs", given, {})
    for name, kind in (("reasoning_effort", JSONFile.text), ("add_generation_prompt", _boolean)):
        value: JSON = read.get(name, kind, None)
        if value is not None:
            found[name] = value
    return found


def _boolean(one: JSONFile) -> JSON:
    return one.boolean()


def _prompt(read: _Body) -> str | Sequence[int]:
    def prompt(one: JSONFile) -> str | Sequence[int]:
        match one.value:
            case str():
                return _text(one)
            case [int(), *_]:
                return one.counts()
            case [str() | list() as inner] if inner != []:
                return prompt(one.list()[0])
            case [_, _, *_]:
                raise RequestError(
                    422,
                    "several prompts in one request are not supported: send one each",
                    param="prompt",
                    code="unsupported",
                )
            case _:
                raise one.error("is neither a text nor token ids, or has none")

    found = read.get("prompt", prompt, None)
    if found is None:
        raise RequestError(400, "a prompt is missing", param="prompt", code="missing")
    return found


def _text(one: JSONFile) -> str:
    """A text that can be encoded: JSON may have halves of pairs."""
    text = one.text()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise one.error("has a lone surrogate, which is no text") from None
    return text


def _messages(read: _Body) -> Sequence[Mapping[str, JSON]]:
    found = read.get("messages", lambda one: [_message(each) for each in one.list()], None)
    if not found:
        raise RequestError(400, "messages are missing", param="messages", code="missing")
    return found


def _message(one: JSONFile) -> dict[str, JSON]:
    role = one["role"].text()
    if role in ("tool", "function"):
        raise RequestError(422, "tools are not supported", param="messages", code="unsupported")
    made: dict[str, JSON] = {"role": one["role"].text(*_ROLES)}
    for name, value in one.items():
        if name == "role" or value.value is None:
            continue
        if name == "content":
            made[name] = _content(value)
        elif name in ("name", "reasoning_content"):
            made[name] = _text(value)
        elif value.value not in ([], ""):
            raise RequestError(
                422, f"{value.place} is not supported", param="messages", code="unsupported"
            )
    if "content" not in made:
        raise one.error("has no content")
    return made


def _content(one: JSONFile) -> str:
    """A text, or the texts of its parts."""
    if isinstance(one.value, str):
        return _text(one)
    parts: list[str] = []
    for part in one.list():
        kind = part["type"].text()
        if kind != "text":
            raise RequestError(
                422,
                f"{part.place} is of type '{kind[:40]}': only texts are supported",
                param="messages",
                code="unsupported",
            )
        parts.append(_text(part["text"]))
    return "\n".join(parts)
