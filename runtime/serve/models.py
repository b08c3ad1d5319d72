"""What is served: the base and its adapters, by name, and what a request makes of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.backend.output.output import ADAPTER_DESCRIPTION, ADAPTERS, MANIFEST
from intaglio.backend.program.program import PROGRAM
from intaglio.dialects.errors import UserError, meant
from intaglio.dialects.json_file import JSON
from intaglio.runtime.serve.engine import Task
from intaglio.runtime.serve.errors import RequestError
from intaglio.runtime.serve.requests import Wanted
from intaglio.runtime.text.generation import Stops, stops_of
from intaglio.runtime.text.sampling import Sampler

if TYPE_CHECKING:
    from intaglio.backend.images.adapter import AdapterImage
    from intaglio.runtime.loaded_model import LoadedModel
    from intaglio.runtime.text.chat import ChatTemplate

_OWNER = "intaglio"
_SEEDS = 1 << 63


class Models:
    """The base of an output folder and its adapters, each a model to clients.

    Adapters that are added or removed meanwhile come and go.

    Args:
        chip: the compiled model.
        engine: that runs it.
        name: of the base.
        template: of chats; None: they are refused.
        most: tokens of an answer; None: what the context holds.

    Raises:
        UserError: tokens stand for no texts, or an adapter has the base's name.
    """

    def __init__(
        self,
        chip: LoadedModel,
        engine: str,
        name: str,
        template: ChatTemplate | None,
        most: int | None = None,
    ) -> None:
        self.name = name
        self._chip, self._engine = chip, engine
        self._template = template
        self._most = most
        # What is read lazily is read here, before threads share it.
        _ = chip.text_tokenizer, chip.end_tokens, chip.adapters
        self.fingerprint = f"fp_{chip.files.digests[PROGRAM][:12]}"
        self._created = int((chip.folder / MANIFEST).stat().st_mtime)
        self._images: dict[str, tuple[tuple[int, ...], AdapterImage]] = {}
        if name in chip.adapters:
            raise UserError(
                f"the base and an adapter are both called '{name}'",
                file=str(chip.folder),
                hint="call the base something else by --name",
            )

    def __iter__(self) -> Iterator[str]:
        """Names, the base's first."""
        yield self.name
        yield from self._chip.adapters

    def check(self, name: str) -> None:
        """Whether there is a model of a name.

        Raises:
            RequestError: there is none.
        """
        names = list(self)
        if name not in names:
            raise RequestError(
                404,
                f"there is no model '{name[:100]}' ({meant(name[:100], names)}models: "
                f"{', '.join(names)})",
                param="model",
                code="model_not_found",
            )

    def entry(self, name: str) -> dict[str, JSON]:
        """What a list of models says of one."""
        program = self._chip.program
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": _OWNER,
            "intaglio": {
                "target": program.machine.name,
                "engine": self._engine,
                "context": program.capacity,
                "vocabulary": program.vocabulary,
                "adapter": None if name == self.name else name,
                "chat": self._template is not None,
            },
        }

    def about(self, task: Task) -> dict[str, JSON]:
        """What an answer says of the chip."""
        machine = self._chip.program.machine
        return {
            "engine": self._engine,
            "target": machine.name,
            "clock_hz": machine.clock_hz,
            "adapter": None if task.adapter is None else task.adapter.name,
        }

    def word(self, token: int) -> str:
        """The text of a single token."""
        return self._chip.decode([token])

    def task(self, wanted: Wanted) -> Task:
        """What the engine has to do for a request.

        Raises:
            RequestError: it cannot be done; says why.
        """
        self.check(wanted.model)
        prompt = self._prompt(wanted)
        tokens = self._tokens(wanted, prompt)
        stops = self._stops(wanted)
        sampler = None
        if wanted.temperature:
            seed = secrets.randbelow(_SEEDS) if wanted.seed is None else wanted.seed
            sampler = Sampler(wanted.temperature, wanted.top_k, seed, top_p=wanted.top_p)
        return Task(
            model=wanted.model,
            prompt=prompt,
            tokens=tokens,
            adapter=None if wanted.model == self.name else self._image(wanted.model),
            stops=stops,
            sampler=sampler,
            logprobs=wanted.logprobs,
        )

    def _prompt(self, wanted: Wanted) -> Sequence[int]:
        if wanted.messages is None:
            if not isinstance(wanted.prompt, str):
                return wanted.prompt
            try:
                return self._chip.encode(wanted.prompt)
            except UserError as error:
                raise RequestError.of(error, param="prompt", code="invalid_value") from error
        if self._template is None:
            raise RequestError(
                422,
                "the model has no chat template, so that it is not known what a chat is to it "
                "(use /v1/completions, or start the server with --chat-template FILE)",
                param="messages",
                code="no_chat_template",
            )
        messages = [dict(one) for one in wanted.messages]
        if not self._template.knows_developers:
            for one in messages:
                one["role"] = "system" if one["role"] == "developer" else one["role"]
        try:
            text = self._template.render(messages, wanted.options)
            # The template writes the tokens that begin a text itself.
            return self._chip.encode(text, special=False)
        except UserError as error:
            raise RequestError.of(error, param="messages", code="invalid_value") from error

    def _tokens(self, wanted: Wanted, prompt: Sequence[int]) -> int:
        """How many tokens are generated at most."""
        left = self._chip.program.capacity - len(prompt) + 1
        most = left if self._most is None else min(self._most, left)
        if wanted.tokens is not None and self._most is not None and wanted.tokens > self._most:
            raise RequestError(
                400,
                f"max_tokens is {wanted.tokens}; the server gives at most {self._most} tokens",
                param="max_tokens",
                code="invalid_value",
            )
        tokens = max(most, 1) if wanted.tokens is None else wanted.tokens
        try:
            self._chip.check_prompt(prompt, tokens)
        except UserError as error:
            fits = prompt and left >= tokens
            code = "invalid_value" if fits or not prompt else "context_length_exceeded"
            param = "prompt" if wanted.messages is None else "messages"
            raise RequestError(400, error.what, param=param, code=code) from error
        return tokens

    def _stops(self, wanted: Wanted) -> Stops:
        try:
            return stops_of(
                self._chip, wanted.stop_ids, texts=wanted.stops, end_tokens=wanted.end_tokens
            )
        except UserError as error:
            what = error.what.removeprefix("--stop ")
            raise RequestError(
                400, f"stop_token_ids: {what}", param="stop_token_ids", code="invalid_value"
            ) from error

    def _image(self, name: str) -> AdapterImage:
        """An adapter's image; the same as long as its files are."""
        traits = _traits(self._chip.folder / ADAPTERS / name / ADAPTER_DESCRIPTION)
        kept = self._images.get(name)
        if kept is None or kept[0] != traits:
            try:
                kept = traits, self._chip.adapters.load(name)
            except UserError as error:
                raise RequestError.of(error, 422, param="model", code="adapter_unusable") from error
            self._images[name] = kept
        return kept[1]


def _traits(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
