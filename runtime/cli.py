"""The `intaglio` command.

Exit codes: 0 is success; 1 is an error of the user's (or a missed tolerance), with a message and
no traceback; 2 is a bug of Intaglio. Results go to standard output, everything else to standard
error. Imports are made by the command that needs them, so that small commands start fast.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from intaglio.backend.output.output import MAPPING, json_text, tidy_output
from intaglio.backend.output.whole import naming, whole_file, write_text
from intaglio.backend.stages import HARDWARE_STAGES, STAGES
from intaglio.dialects.errors import CompilerBug, UserError, printable
from intaglio.runtime.engines.names import CHECKED_ENGINES, ENGINES, HARDWARE_ENGINES
from intaglio.runtime.interrupts import Stopped, stopping
from intaglio.runtime.judge.defaults import (
    DEFAULT_TOKENS,
    HARDWARE_TOKENS,
    OPERATOR_THRESHOLD,
    OPERATOR_TOKENS,
    WINDOW,
)
from intaglio.runtime.reports.wording import counted
from intaglio.runtime.text.generation import DEFAULT_TOKENS as GENERATED_TOKENS

if TYPE_CHECKING:
    from intaglio.backend.output.verified import OutputFiles
    from intaglio.runtime.chip import Chip
    from intaglio.runtime.text.sampling import Sampler

SUCCESS, FAILURE, BUG = 0, 1, 2


class _UsageError(Exception):
    """The command line cannot be understood."""

    def __init__(self, usage: str, message: str) -> None:
        super().__init__(f"{usage}{message}")


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting with 2, which means a bug here."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(self.format_usage(), f"{self.prog}: {message}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    debug = False
    try:
        args = _parser().parse_args(argv)
        debug = getattr(args, "debug", False)
        with stopping(), ExitStack() as args.ends:
            if "out" in args:
                _tidy(Path(args.out))
            return args.run(args)
    except _UsageError as error:
        return _fail(str(error), FAILURE)
    except UserError as error:
        if debug:
            raise
        return _fail(str(error), FAILURE)
    except BrokenPipeError:
        # The reader went away.
        _forget_output()
        return FAILURE
    except Stopped as error:
        return _fail("stopped", 128 + error.signal)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", FAILURE)
    except MemoryError:
        if debug:
            raise
        return _fail("this machine's memory is too small for the model", FAILURE)
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, CompilerBug) else f"{type(error).__name__}: "
        return _fail(
            f"{kind}{error}\n"
            "  this is a bug of intaglio; run the same with --debug and report what it prints",
            BUG,
        )


def _tidy(out: Path) -> None:
    """Names what killed commands left of an output folder, which is gone then."""
    for line in tidy_output(out):
        _warn(line)


def _warn(text: str) -> None:
    _say(f"warning: {text}\n")


def _fail(message: str, code: int) -> int:
    _say(message.rstrip() + "\n")
    return code


def _say(text: str) -> None:
    """Writes to standard error, if there is any."""
    stream: TextIO | None = sys.stderr
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.write(printable(text))
            stream.flush()


def _write(text: str) -> None:
    """Writes a text as it is.

    Raises:
        UserError: standard output is closed, or takes nothing.
    """
    stream: TextIO | None = sys.stdout
    if stream is None or stream.closed:
        raise UserError("standard output is closed")
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _forget_output()
        raise UserError(f"standard output cannot be written: {error.strerror}") from error
    except UnicodeEncodeError:
        encoding = stream.encoding
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def _write_line(text: str) -> None:
    """Writes a line of a report; what names hold cannot move the cursor."""
    _write(printable(text) + "\n")


def _forget_output() -> None:
    """Nothing more can be written: Python would complain again when it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_json(content: Any) -> None:
    _write(json_text(content))


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows the step at hand in one line of a terminal, and nothing elsewhere."""
    stream: TextIO | None = sys.stderr
    if stream is None or not stream.isatty():
        yield lambda message: None
        return
    start = time.monotonic()

    def show(message: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        line = f"{time.monotonic() - start:6.1f} s  {message}"
        sys.stderr.write(f"\r\x1b[K{printable(line)[:width]}")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


# --- arguments --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show tracebacks of errors",
    )
    parser = _Parser(
        prog="intaglio",
        parents=[common],
        description="Compiles ONNX language models into ROM-based accelerators.",
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        added = commands.add_parser(name, parents=[common], help=text, description=text)
        added.set_defaults(run=run)
        return added

    _compile_arguments(command("compile", _compile, "Compile a model for a target."))
    _run_arguments(command("run", _run, "Generate tokens, and count their cycles."))
    _check_arguments(command("check", _check, "Compare a compiled model with onnxruntime."))

    _adapter_arguments(commands, common)

    inspect = command("inspect", _inspect, "Show memory by use, cycles, power, what they go into.")
    _folder_arguments(inspect)
    inspect.add_argument(
        "--format",
        choices=("text", "json", "html", "svg", "perfetto"),
        default="text",
        help="svg: one picture; perfetto: one token's instructions as Chrome trace events",
    )
    inspect.add_argument(
        "--position",
        metavar="N,...",
        help="state these positions; html, svg and perfetto draw the token at the last one",
    )
    inspect.add_argument("-o", dest="file", metavar="FILE", help="write to a file")

    targets = command("targets", _targets, "List the targets, or one with all its figures.")
    targets.add_argument("name", metavar="NAME", nargs="?", help="a target, or its TOML file")
    targets.add_argument("--json", action="store_true")

    ops = command("ops", _ops, "List the ONNX operators that are supported.")
    ops.add_argument("--json", action="store_true")
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from importlib.metadata import version

        _write(f"intaglio {version('intaglio')}\n")
        parser.exit()


def _compile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("--target", metavar="T", required=True, help="see `intaglio targets`")
    parser.add_argument(
        "--context",
        metavar="N",
        type=int,
        help="tokens that the KV cache holds; else as many as the graph has positions for",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a parameter or format of the target, such as activations=int16",
    )
    parser.add_argument(
        "--weights",
        metavar="FORMAT",
        help="quantise float weights, round to nearest: int4:128, ternary, or by name: "
        "int3:32,down_proj=int6:32,lm_head=int6:64; target: in the mix that it states",
    )
    parser.add_argument(
        "--adapter-slots",
        metavar="RANK[:MODULES]",
        help="slots for adapters of at most this rank, such as 16:q_proj,v_proj",
    )
    parser.add_argument(
        "--resident-adapters",
        metavar="N",
        type=int,
        default=1,
        help="adapters that the slots hold at once, one of them active; to switch takes a cycle",
    )
    parser.add_argument("--mapping", metavar="FILE", help="follow the placement in this file")
    parser.add_argument(
        "--allow-links",
        action="store_true",
        help="follow links of external data inside a model hub's cache",
    )
    parser.add_argument(
        "--emit", choices=STAGES, help="stop at this stage; else as the target says"
    )
    parser.add_argument(
        "--no-reference",
        dest="reference",
        action="store_false",
        help="leave the model out of OUT; then onnxruntime cannot judge what was compiled",
    )
    parser.add_argument("-o", dest="out", metavar="OUT", required=True, help="folder to write")


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    _folder_arguments(parser)
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
    parser.add_argument("--seed", metavar="N", type=int, help="of the draws; else 0")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--logits", metavar="FILE.npy", help="write float32 [tokens, vocabulary]")
    _adapter_argument(parser)
    _trace_arguments(parser)


def _folder_arguments(parser: argparse.ArgumentParser) -> None:
    """The output folder, and what is to be thought of its files."""
    parser.add_argument("out", metavar="OUT", help="output folder of a compile")
    parser.add_argument(
        "--trust-edited",
        action="store_true",
        help="go on with files of OUT that are not what the compile wrote, and name them",
    )
    parser.add_argument(
        "--verify", action="store_true", help="hash all files of OUT again, not only changed ones"
    )


def _loaded(args: argparse.Namespace) -> Chip:
    """The output folder, opened."""
    from intaglio.runtime.chip import load

    return load(args.out, trust_edited=args.trust_edited, verify=args.verify)


def _edited_lines(edited: Sequence[str]) -> Iterator[str]:
    """Says that a result is not that of what the compiler wrote."""
    if edited:
        yield f"  edited       {', '.join(edited)}: not what the compiler wrote"


def _adapter_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", metavar="NAME", help="with this adapter; see adapter list")


def _adapter_arguments(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "Add, list or remove adapters of a compiled model."
    parser = commands.add_parser("adapter", parents=[common], help=text, description=text)
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        added = actions.add_parser(name, parents=[common], help=text, description=text)
        added.set_defaults(run=run)
        _folder_arguments(added)
        return added

    add = action("add", _adapter_add, "Convert an adapter to the chip's format and keep it.")
    add.add_argument("name", metavar="NAME", help="what to call it")
    add.add_argument(
        "file", metavar="FILE", help="PEFT folder, .onnx_adapter, or Olive's .safetensors or .npz"
    )
    add.add_argument("--json", action="store_true")
    listed = action("list", _adapter_list, "Show adapters, and what their conversion lost.")
    listed.add_argument("--json", action="store_true")
    remove = action("remove", _adapter_remove, "Forget an adapter.")
    remove.add_argument("name", metavar="NAME")


def _trace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace", metavar="FILE.vcd", help="write a waveform (rtl; verilator also .fst)"
    )
    parser.add_argument(
        "--trace-cycles", metavar="FROM:TO", help="trace only these cycles, counted from the reset"
    )


@contextmanager
def _traced(args: argparse.Namespace, chip: Chip) -> Iterator[None]:
    """Writes the waveform that is asked for, or nothing of it where the command fails."""
    if args.trace is None:
        if args.trace_cycles is not None:
            raise UserError("--trace-cycles: only with --trace")
        yield
        return
    chip.trace(args.engine, args.trace, args.trace_cycles or ":")
    try:
        yield
    except BaseException:
        chip.trace_end(args.engine, keep=False)
        raise
    chip.trace_end(args.engine)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    _folder_arguments(parser)
    parser.add_argument("--engine", choices=CHECKED_ENGINES, default=CHECKED_ENGINES[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt-ids", metavar="1,2,3", help="compare this and its continuation")
    what.add_argument("--text", metavar="FILE", help="compare on a text, with perplexities")
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=int,
        help=f"how many to compare: all of a text, {DEFAULT_TOKENS} otherwise (at random without "
        f"--prompt-ids), {HARDWARE_TOKENS} of them on hardware",
    )
    parser.add_argument(
        "--windows",
        metavar="N",
        type=int,
        help=f"how many windows of {WINDOW} tokens of the text; else all",
    )
    parser.add_argument(
        "--per-op",
        action="store_true",
        help=f"compare every operator on {OPERATOR_TOKENS} tokens, and name the first that is "
        f"further off than {OPERATOR_THRESHOLD:.0%}".replace("%", "%%"),
    )
    parser.add_argument(
        "--stress",
        action="store_true",
        help="with --engine rtl: compare on extreme contents of ROM, caches, adapters and memories "
        "as well, so that limits are reached",
    )
    _adapter_argument(parser)
    parser.add_argument("--json", action="store_true")
    _trace_arguments(parser)
    parser.add_argument(
        "--tolerance",
        dest="tolerances",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="exit with 1 when a figure of the JSON is worse",
    )


# --- commands ---------------------------------------------------------------------------------


def _compile(args: argparse.Namespace) -> int:
    from intaglio.backend.compile import compile_model
    from intaglio.backend.stages import Options
    from intaglio.backend.target.target import load_target
    from intaglio.runtime.chip import check_residents, parse_slots
    from intaglio.runtime.expected_tokens import expected_tokens

    if args.context is not None and args.context < 1:
        raise UserError(f"--context {args.context}: a KV cache holds at least one token")
    # A wrong target or setting is found before a large model is read.
    load_target(args.target).with_options(args.settings)
    rank, modules = parse_slots(args.adapter_slots)
    check_residents(args.resident_adapters, rank)
    options = Options(
        target=args.target,
        settings=tuple(args.settings),
        context=args.context,
        weights=args.weights,
        adapter_rank=rank,
        adapter_modules=modules,
        resident_adapters=args.resident_adapters,
        mapping=args.mapping,
        emit=args.emit,
        allow_links=args.allow_links,
        reference=args.reference,
    )
    with _progress() as progress:
        compiled = compile_model(args.model, args.out, options, progress, expected_tokens)
    is_whole = args.emit in (None, "program", *HARDWARE_STAGES)
    judged = is_whole and args.reference
    for warning in (*compiled.warnings, *(_unjudged(compiled.folder) if judged else ())):
        _warn(warning)
    _write_line(f"{args.model} for {args.target}: {compiled.folder}")
    if is_whole:
        from intaglio.runtime.reports.inspect import inspect_json
        from intaglio.runtime.reports.tables import summary_lines

        for line in summary_lines(inspect_json(compiled.folder)):
            _write_line(f"  {line}")
    return SUCCESS


def _unjudged(folder: Path) -> Iterator[str]:
    """That `check` will have no judge, where the graph itself says so."""
    from intaglio.runtime.judge.judgeable import why_not
    from intaglio.runtime.judge.reference import model_of

    if (reason := why_not(model_of(folder))) is not None:
        yield (
            f"onnxruntime cannot judge this model on a CPU: {reason}; check --engine rtl compares "
            "hardware and simulator alone"
        )


def _prompt(args: argparse.Namespace, chip: Chip) -> tuple[list[int], str | None]:
    """The prompt's token ids and, where it is one, its text."""
    if args.prompt_ids is not None:
        return _ids(args.prompt_ids), None
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


_STANDARD_INPUT = "standard input"
_LARGEST_PROMPT = 64 << 20


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
        for name in ("top_k", "seed"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')}: only with --temperature")
        return None
    sampler = Sampler(args.temperature, args.top_k, args.seed or 0)
    return sampler if sampler.temperature else None


def _announce(args: argparse.Namespace, chip: Chip, tokens: int) -> None:
    """Says how much work the simulation of hardware is, before it begins."""
    from intaglio.runtime.engines.hardware_work import work_lines

    if args.engine in HARDWARE_ENGINES:
        for line in work_lines(chip, args.engine, tokens):
            _say(f"{line}\n")


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise UserError(
            f"--prompt-ids {text}: not a list of token ids", hint="for example --prompt-ids 1,2,3"
        ) from None


def _run(args: argparse.Namespace) -> int:
    if args.logits is None:
        return _generate(args, None)
    # What is wrong with the file is said before tokens are generated.
    with whole_file(Path(args.logits)) as partial:
        return _generate(args, partial)


def _generate(args: argparse.Namespace, logits_file: Path | None) -> int:
    from intaglio.runtime.text.generation import Generation, room, stops_of

    sampler = _sampler(args)
    chip = _loaded(args)
    prompt, prompt_text = _prompt(args, chip)
    most, _ = room(chip, prompt, args.tokens, args.engine)
    stops = stops_of(chip, args.stops, end_tokens=not args.no_stop)
    if not args.no_stop:
        for warning in chip.end_tokens.warnings:
            _warn(warning)
    _announce(args, chip, len(prompt) + most - 1)
    args.ends.enter_context(_traced(args, chip))
    load_cycles = None if args.adapter is None else chip.use_adapter(args.adapter)
    as_text = prompt_text is not None or chip.tokenizer is not None
    with _progress() as progress:
        progress("loading the model")
        generation = Generation(
            chip, prompt, args.tokens, args.engine, stops=stops, sampler=sampler, as_text=as_text
        )
        steps = iter(generation)
        first = next(steps)
    tokens: list[int] = []
    logits: list[Any] = []
    seconds: list[float] = []
    parts: list[str] = []

    def show(part: str) -> None:
        parts.append(part)
        if not args.json:
            _write(part)

    if not args.json and prompt_text is not None:
        _write(prompt_text)
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
    result = _figures(chip, args.engine, prompt, tokens, seconds)
    result |= {"stopped": generation.stopped, "stopped_by": generation.stopped_by}
    if sampler is not None:
        names = ("temperature", "top_k", "seed")
        result["sampling"] = {name: getattr(sampler, name) for name in names}
    if load_cycles is not None:
        result |= {"adapter": args.adapter, "adapter_load_cycles": load_cycles}
    if chip.edited:
        result["edited"] = list(chip.edited)
    if as_text:
        result["text"] = "".join(parts)
    if args.json:
        _write_json(result)
    else:
        _write("\n\n")
        for line in (*_figure_lines(chip, result, args.no_stop), *_edited_lines(chip.edited)):
            _write_line(line)
    return SUCCESS


def _save(path: Path, logits: Sequence[Any]) -> None:
    import numpy as np

    with naming(path), path.open("wb") as file:
        np.save(file, np.stack(logits))


def _figures(
    chip: Chip, engine: str, prompt: list[int], tokens: list[int], seconds: list[float]
) -> dict[str, Any]:
    later = seconds[1:]
    here = len(later) / sum(later) if later else None
    result: dict[str, Any] = {
        "engine": engine,
        "target": chip.program.machine.name,
        "prompt_ids": prompt,
        "tokens": tokens,
        "prefill_cycles": None,
        "cycles": None,
        "tokens_per_second": here,
        "host_tokens_per_second": here,
    }
    if engine != "onnxruntime":
        clock = chip.program.machine.clock_hz
        cycles = chip.generation_cycles(len(prompt), len(tokens))
        result |= {
            "prefill_cycles": cycles.prefill,
            "cycles": list(cycles.tokens),
            "tokens_per_second": cycles.per_second(clock),
            "clock_hz": clock,
            "saturations": chip.saturations(engine),
        }
        if result["saturations"]:
            from intaglio.runtime.judge.saturation import saturation

            result["saturation"] = saturation(chip.simulator, [*prompt, *tokens])
    return result


def _figure_lines(chip: Chip, result: dict[str, Any], no_stop: bool) -> Iterator[str]:
    from intaglio.runtime.judge.saturation import saturation_lines

    here, prompt = result["host_tokens_per_second"], len(result["prompt_ids"])
    yield f"{counted(len(result['tokens']), 'token')} by {result['engine']} ({result['target']})"
    yield f"  stopped    {_stopped(chip, result, no_stop)}"
    if "sampling" in result:
        drawn = result["sampling"]
        among = "" if drawn["top_k"] is None else f" among {counted(drawn['top_k'], 'token')}"
        yield f"  drawn      at temperature {drawn['temperature']:g}{among}, seed {drawn['seed']}"
    if result["cycles"] is not None:
        cycles, clock = result["cycles"], result["clock_hz"]
        later = cycles[1:] or cycles
        mean = sum(later) / len(later)
        if "adapter" in result:
            took = result["adapter_load_cycles"]
            yield f"  adapter    {result['adapter']}, loaded in {took:,} cycles"
        prompted = counted(prompt, "prompt token")
        yield f"  prefill    {result['prefill_cycles']:,} cycles for {prompted}"
        yield f"  per token  {mean:,.1f} cycles ({min(later):,} to {max(later):,})"
        yield f"  speed      {clock / mean:,.0f} tokens/s at {clock / 1e6:g} MHz"
        if result["saturations"]:
            yield f"  saturated  {result['saturations']:,} values"
            for line in saturation_lines(result["saturation"]):
                yield f"             {line}"
    if here is not None:
        yield f"  this host  {here:,.1f} tokens/s"


def _stopped(chip: Chip, result: dict[str, Any], no_stop: bool) -> str:
    """Why a generation ended; without the model's end tokens it was one of `--stop`."""
    by = result["stopped_by"]
    match result["stopped"]:
        case "end_token":
            if isinstance(by, str):
                return f"at the text {by!r}"
            named = {} if no_stop else chip.end_tokens.ids
            return f"at end token {by}, which {named.get(by, '--stop')} names"
        case "context":
            return f"at the end of the context, {chip.program.capacity:,} tokens"
        case _:
            return "when all tokens were there"


def _check(args: argparse.Namespace) -> int:
    from intaglio.runtime.judge.check import check
    from intaglio.runtime.judge.report import (
        check_tolerances,
        missed,
        parse_tolerance,
        text_lines,
    )

    tolerances = [parse_tolerance(text) for text in args.tolerances]
    if args.windows is not None and args.text is None:
        raise UserError("--windows: only with --text")
    check_tolerances(tolerances, text=args.text is not None, per_op=args.per_op)
    if args.stress:
        from intaglio.runtime.judge.stress import check_engine

        check_engine(args.engine)
    chip = _loaded(args)
    _announce(args, chip, HARDWARE_TOKENS if args.tokens is None else max(1, args.tokens))
    args.ends.enter_context(_traced(args, chip))
    with _progress() as progress:
        result = check(
            chip,
            prompt_ids=None if args.prompt_ids is None else _ids(args.prompt_ids),
            tokens=args.tokens,
            text=args.text,
            windows=args.windows,
            per_op=args.per_op,
            engine=args.engine,
            adapter=args.adapter,
            stress=args.stress,
            progress=progress,
            announce=lambda line: _say(f"{line}\n"),
        )
    if chip.edited:
        result["edited"] = list(chip.edited)
    failures = missed(result, tolerances)
    if result.get("hardware_difference"):
        failures.append(f"hardware and simulator differ: {result['hardware_difference']}")
    if args.json:
        _write_json(result)
    else:
        for line in (*text_lines(result), *_edited_lines(chip.edited)):
            _write_line(line)
    for line in failures:
        _say(f"{args.out}: {line}\n")
    return FAILURE if failures else SUCCESS


def _adapter_add(args: argparse.Namespace) -> int:
    from intaglio.runtime.adapters.adapters import summary_lines

    with _progress() as progress:
        summary = _loaded(args).adapters.add(args.name, args.file, progress)
    for warning in summary.warnings:
        _warn(f"{args.file}: {warning}")
    if args.json:
        _write_json(summary.content() | {"warnings": list(summary.warnings)})
    else:
        for line in summary_lines(summary):
            _write_line(line)
    return SUCCESS


def _adapter_list(args: argparse.Namespace) -> int:
    from intaglio.runtime.adapters.adapters import list_content, list_lines

    adapters = _loaded(args).adapters
    if args.json:
        _write_json(list_content(adapters))
    else:
        for line in list_lines(adapters):
            _write_line(line)
    return SUCCESS


def _adapter_remove(args: argparse.Namespace) -> int:
    _loaded(args).adapters.remove(args.name)
    return SUCCESS


def _inspect(args: argparse.Namespace) -> int:
    from intaglio.backend.output.verified import OutputFiles

    positions = None if args.position is None else _positions(args.position)
    files = OutputFiles(Path(args.out), trust_edited=args.trust_edited, again=args.verify)
    text = _inspected(args.out, args.format, positions, files)
    if args.file is None:
        _write(printable(text) if args.format == "text" else text)
        return SUCCESS
    with whole_file(Path(args.file)) as partial:
        write_text(partial, text)
    return SUCCESS


def _positions(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(
            f"--position {text}: not a list of positions", hint="for example --position 0,1023"
        )
    return [int(part) for part in parts]


def _inspected(out: str, form: str, positions: Sequence[int] | None, files: OutputFiles) -> str:
    """The report of an output folder in one of its forms."""
    from intaglio.backend.program.program import PROGRAM
    from intaglio.backend.target.file import TARGET

    def verify() -> None:
        # Behind the reading, which says more where a value is wrong.
        files.verify([PROGRAM, MAPPING, TARGET])
        for line in _edited_lines(files.edited):
            _warn(line.strip())

    if form == "perfetto":
        from intaglio.runtime.reports.perfetto import perfetto_text

        text = perfetto_text(out, None if positions is None else positions[-1])
        verify()
        return text
    from intaglio.runtime.reports.inspect import inspect_json

    content = inspect_json(out, positions)
    verify()
    if files.edited:
        content["edited"] = list(files.edited)
    if form == "json":
        return json_text(content)
    if form == "html":
        from intaglio.runtime.reports.html import inspect_html

        return inspect_html(out, content)
    if form == "svg":
        from intaglio.runtime.reports.picture_file import inspect_svg

        return inspect_svg(out, content)
    from intaglio.runtime.reports.text import WIDTH, inspect_text

    text = inspect_text(content, max(WIDTH, shutil.get_terminal_size().columns))
    return text + "".join(f"{line}\n" for line in _edited_lines(files.edited))


def _targets(args: argparse.Namespace) -> int:
    from intaglio.backend.target import report as target_report
    from intaglio.backend.target.target import load_target, target_names

    if args.name is not None:
        target = load_target(args.name)
        if args.json:
            _write_json(target_report.shown_json(target))
        else:
            _write(printable(target_report.target_text(target)))
        return SUCCESS
    targets = [load_target(name) for name in target_names()]
    if args.json:
        _write_json(target_report.list_json(targets))
    else:
        _write(printable(target_report.list_text(targets)))
    return SUCCESS


def _ops(args: argparse.Namespace) -> int:
    import textwrap

    from intaglio.lowering.onnx.operators.table import table

    entries = [
        {
            "domain": entry.domain or "ai.onnx",
            "op_type": entry.op_type,
            "since": entry.since,
            "becomes": entry.becomes,
            "limits": entry.limits,
        }
        for entry in table().values()
    ]
    if args.json:
        _write_json({"schema": 1, "operators": entries})
        return SUCCESS
    width = max(80, shutil.get_terminal_size((100, 24)).columns)
    domain = ""
    for entry in entries:
        if entry["domain"] != domain:
            _write(("\n" if domain else "") + f"{entry['domain']}\n")
            domain = entry["domain"]
        name = f"  {entry['op_type']} (since {entry['since']})"
        text = entry["becomes"] + (f"; {entry['limits']}" if entry["limits"] else "")
        lines = textwrap.wrap(text, width - 44, break_on_hyphens=False)
        _write(f"{name:<43} {lines[0]}\n")
        for line in lines[1:]:
            _write(f"{'':<44}{line}\n")
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
