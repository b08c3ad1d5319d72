"""Chat templates: what a model's files make of messages, as one text.

Exporters put them beside the model: `chat_template.jinja`, or in `tokenizer_config.json` under
`chat_template`, a text or a list of named ones, of which `default` counts. They are programs in
Jinja, written by whoever made the model: rendered in Jinja's sandbox, in which nothing but the
values that are handed in can be reached and none of them changed, up to a length and a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.dialects.errors import UserError
from intaglio.dialects.json_file import JSON, JSONFile
from intaglio.runtime.text.end_tokens import special_texts

if TYPE_CHECKING:
    import jinja2

TEMPLATE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
_MAP = "special_tokens_map.json"
_LARGEST = 1 << 20
"""Bytes of a template."""
_LONGEST = 8 << 20
"""Characters of a rendered text."""
_SECONDS = 5.0
"""In which a text is rendered."""


class ChatTemplate:
    """A template that can be rendered.

    Args:
        source: in Jinja.
        file: where it is from.
        names: texts of special tokens, as `bos_token`.

    Raises:
        UserError: it is no template, or Jinja is not installed.
    """

    def __init__(self, source: str, file: Path, names: Mapping[str, str]) -> None:
        self.file = file
        self.names = dict(names)
        self.knows_developers = "developer" in source
        """Whether it says something of that role, which others call `system`."""
        import jinja2

        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            what = f"is no chat template: line {error.lineno}: {error.message}"
            raise UserError(what, file=str(file)) from error
        except (RecursionError, ValueError, OverflowError) as error:
            raise UserError(f"is no chat template: {error}", file=str(file)) from error

    def render(
        self, messages: Sequence[Mapping[str, JSON]], options: Mapping[str, JSON] | None = None
    ) -> str:
        """The text of a conversation, up to where the assistant's next words begin.

        Args:
            messages: each with `role` and `content`, the first one first.
            options: variables of the template besides those that all templates know.

        Raises:
            UserError: the template refuses the messages, or cannot render them.
        """
        import jinja2

        variables: dict[str, Any] = {
            **self.names,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **(options or {}),
            "messages": [dict(one) for one in messages],
        }
        parts: list[str] = []
        length, end = 0, time.monotonic() + _SECONDS
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                length += len(part)
                if length > _LONGEST or time.monotonic() > end:
                    raise UserError(
                        f"the chat template takes more than {_LONGEST >> 20} Mi characters or "
                        f"{_SECONDS:g} s",
                        file=str(self.file),
                    )
        except UserError:
            raise
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses this: {error}") from error
        # It is a program, and may fail in any way.
        except (Exception, RecursionError) as error:
            what = f"the chat template cannot render this: {type(error).__name__}: {error}"
            raise UserError(what) from error
        return "".join(parts)


def template_beside(model: Path) -> ChatTemplate | None:
    """The chat template of the files beside a model; None where there is none.

    Raises:
        UserError: a file cannot be read, or is no template.
    """
    file = model.parent / TEMPLATE
    if file.is_file():
        return template_in(file, model)
    file = model.parent / CONFIG
    if not file.is_file():
        return None
    stated = JSONFile.read(file).get("chat_template")
    if stated is None:
        return None
    if isinstance(stated.value, list):
        named = {one["name"].text(): one["template"] for one in stated.list()}
        if "default" not in named:
            raise stated.error(f"has no template 'default', only {', '.join(named) or 'none'}")
        stated = named["default"]
    return ChatTemplate(stated.text(), file, special_names(model))


def template_in(file: Path, model: Path) -> ChatTemplate:
    """The chat template in a file of its own, for a model.

    Raises:
        UserError: the file cannot be read, or is no template.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise UserError(f"is longer than {_LARGEST >> 20} MiB", file=str(file))
        source = data.decode()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(file)) from error
    except UnicodeDecodeError as error:
        raise UserError("is no UTF-8 text", file=str(file)) from error
    return ChatTemplate(source, file, special_names(model))


def special_names(model: Path) -> dict[str, str]:
    """Texts of special tokens, as `bos_token`, by the files beside a model."""
    found: dict[str, str] = {}
    for name in (_MAP, CONFIG):
        path = model.parent / name
        content = JSONFile.read(path).value if path.is_file() else None
        if isinstance(content, dict):
            found |= {f"{role}_token": text for role, text in special_texts(content)}
    return found


def _environment() -> jinja2.Environment:
    """Jinja as templates of chat models expect it: transformers' helpers, and its trimming."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
    )

    def refuse(message: str) -> str:
        raise jinja2.TemplateError(message)

    def now(form: str) -> str:
        return datetime.now().strftime(form)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own escapes what would be markup.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = now
    return made


def _generation() -> type[Any]:
    """`{% generation %}`, by which templates mark the assistant's words for training."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation
