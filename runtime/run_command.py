"""`intaglio run`: its options, where the prompt is from, and the text as it comes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.backend.output.whole import naming, whole_file
from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.names import ENGINES
from intaglio.runtime.folder_options import (
    adapter_argument,
    announce,
    folder_arguments,
    loaded,
    token_ids,
    trace_arguments,
    traced,
)
from intaglio.runtime.judge.defaults import HARDWARE_TOKENS
from intaglio.runtime.terminal import progress_line, warn, write, write_json, write_line
from intaglio.runtime.text.drafts import DEFAULT_TOKENS as DRAFTED_TOKENS
from intaglio.runtime.text.drafts import Draft, draft_of
from intaglio.runtime.text.generation import DEFAULT_TOKENS as GENERATED_TOKENS

if TYPE_CHECKING:
    import numpy as np

    from intaglio.runtime.chip import Chip
    from intaglio.runtime.text.sampling import Sampler

_STANDARD_INPUT = "standard input"
_LARGEST_PROMPT = 64 << 20


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    folder_arguments(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="- reads it from standard input")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="a text; one line end at its end is left out"
    )
    prompt.add_argument("--prompt-ids", metavar="1,2,3", help="token ids")
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=int,
        help=f"how many at most; else {GENERATED_TOKENS} ({HARDWARE_TOKENS} on hardware), or what "
        "fits the context",
    )
    parser.add_argument(
        "--stop",
        dest="stops",
        metavar="TEXT|ID",
        action="append",
        default=[],
        help="end here too, besides the end tokens that files beside the model name",
    )
    parser.add_argument("--no-stop", action="store_true", help="go on past the model's end tokens")
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        help="let the host draw tokens: 1 with the model's own probabilities; else the likeliest",
    )
    parser.add_argument("--top-k", metavar="K", type=int, help="draw from the likeliest K tokens")
    parser.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        help="draw from the likeliest tokens that together have this much of the probability",
    )
    parser.add_argument("--seed", metavar="N", type=int, help="of the draws; else 0")
    parser.add_argument(
        "--draft",
        metavar="ngram:N|MODEL.onnx",
        help="let the chip verify guesses: what followed the last N tokens before, or a smaller "
        "model's choices; the tokens are the same",
    )
    parser.add_argument(
        "--draft-tokens",
        metavar="K",
        type=int,
        help=f"guesses at once at most; else {DRAFTED_TOKENS}",
    )
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--logits", metavar="FILE.npy", help="write float32 [tokens, vocabulary]")
    adapter_argument(parser)
    trace_arguments(parser)


def _prompt(args: argparse.Namespace, chip: Chip) -> tuple[list[int], str | None]:
    """The prompt's token ids and, where it is one, its text."""
    if args.prompt_ids is not None:
        return token_ids(args.prompt_ids), None
    from intaglio.runtime.text.tokenizer import NotText

    if args.prompt_file is not None:
        name, text = args.prompt_file, _text_of(args.prompt_file)
    elif args.prompt == "-":
        name, text = _STANDARD_INPUT, _text_of(None)
    elif args.prompt is not None:
        name, text = "--prompt", args.prompt
    else:
        raise UserError(
            "no prompt is given", hint="--prompt TEXT, --prompt-file FILE, or --prompt-ids 1,2,3"
        )
    try:
        return chip.encode(text), text
    except NotText as error:
        raise UserError(
            "the prompt is not UTF-8 text, which the model's tokenizer takes",
            file=name,
            hint="convert it to UTF-8",
        ) from error


def _text_of(path: str | None) -> str:
    """The text of a file or of standard input, without one line end at its end."""
    name = path or _STANDARD_INPUT
    try:
        with Path(path).open("rb") if path is not None else nullcontext(sys.stdin.buffer) as file:
            data = file.read(_LARGEST_PROMPT + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the prompt cannot be read: {reason}", file=name) from error
    if len(data) > _LARGEST_PROMPT:
        raise UserError(f"the prompt is longer than {_LARGEST_PROMPT >> 20} MiB", file=name)
    # As arguments are decoded: models of bytes take any bytes.
    text = data.decode("utf-8", errors="surrogateescape")
    return text.removesuffix("\n").removesuffix("\r")


def _sampler(args: argparse.Namespace) -> Sampler | None:
    from intaglio.runtime.text.sampling import Sampler

    if args.temperature is None:
        for name in ("top_k", "top_p", "seed"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')}: only with --temperature")
        return None
    top_p = 1 if args.top_p is None else args.top_p
    sampler = Sampler(args.temperature, args.top_k, args.seed or 0, top_p=top_p)
    return sampler if sampler.temperature else None


def _draft(args: argparse.Namespace, chip: Chip) -> Draft | None:
    if args.draft is None:
        if args.draft_tokens is not None:
            raise UserError("--draft-tokens: only with --draft")
        return None
    return draft_of(
        args.draft, chip, DRAFTED_TOKENS if args.draft_tokens is None else args.draft_tokens
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    if args.logits is None:
        return _generate(args, None)
    # What is wrong with the file is said before tokens are generated.
    with whole_file(Path(args.logits)) as partial:
        return _generate(args, partial)


def _generate(args: argparse.Namespace, logits_file: Path | None) -> int:
    from intaglio.runtime.reports.run import run_result
    from intaglio.runtime.text.generation import Generation, room, stops_of

    sampler = _sampler(args)
    chip = loaded(args)
    prompt, prompt_text = _prompt(args, chip)
    most, _ = room(chip, prompt, args.tokens, args.engine)
    stops = stops_of(chip, args.stops, end_tokens=not args.no_stop)
    draft = _draft(args, chip)
    if not args.no_stop:
        for warning in chip.end_tokens.warnings:
            warn(warning)
    # What is wrong with the adapter is said before the work is announced.
    adapter: str | None = args.adapter
    loaded_adapter = None if adapter is None else (adapter, chip.use_adapter(adapter))
    announce(args, chip, len(prompt) + most - 1)
    args.ends.enter_context(traced(args, chip))
    as_text = prompt_text is not None or chip.tokenizer is not None
    with progress_line() as progress:
        progress("loading the model")
        generation = Generation(
            chip,
            prompt,
            args.tokens,
            args.engine,
            stops=stops,
            sampler=sampler,
            as_text=as_text,
            draft=draft,
        )
        steps = iter(generation)
        first = next(steps)
    tokens: list[int] = []
    logits: list[np.ndarray] = []
    seconds: list[float] = []
    parts: list[str] = []

    def show(part: str) -> None:
        parts.append(part)
        if not args.json:
            write(part)

    if not args.json and prompt_text is not None:
        write(prompt_text)
    for generated, part in chain((first,), steps):
        tokens.append(generated.token)
        seconds.append(generated.seconds)
        if logits_file is not None:
            logits.append(generated.logits)
        show(part if as_text else f"{generated.token} ")
    if as_text:
        show(generation.end())
    if logits_file is not None:
        _save(logits_file, logits)
    result = run_result(
        chip,
        args.engine,
        prompt,
        tokens,
        seconds,
        generation,
        end_tokens=not args.no_stop,
        sampler=sampler,
        draft=draft,
        adapter=loaded_adapter,
        text="".join(parts) if as_text else None,
    )
    if args.json:
        write_json(result)
    else:
        write("\n\n")
        for line in result.lines():
            write_line(line)
    return 0


def _save(path: Path, logits: Sequence[np.ndarray]) -> None:
    import numpy as np

    with naming(path), path.open("wb") as file:
        np.save(file, np.stack(logits))
