"""The `intaglio` command.

Exit codes: 0 is success; 1 is an error of the user's (or a missed tolerance), with a message and
no traceback; 2 is a bug of Intaglio. Results go to standard output, everything else to standard
error. Imports are made by the command that needs them, so that small commands start fast.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from intaglio.backend.output.output import MAPPING, json_text, tidy_output
from intaglio.backend.output.whole import whole_file, write_text
from intaglio.backend.stages import HARDWARE_STAGES, STAGES
from intaglio.dialects.errors import CompilerBug, UserError, printable
from intaglio.runtime import run_command, serve_command
from intaglio.runtime.engines.names import CHECKED_ENGINES
from intaglio.runtime.folder_options import (
    adapter_argument,
    announce,
    folder_arguments,
    loaded,
    token_ids,
    trace_arguments,
    traced,
)
from intaglio.runtime.interrupts import Stopped, stopping
from intaglio.runtime.judge.defaults import (
    DEFAULT_TOKENS,
    HARDWARE_TOKENS,
    OPERATOR_THRESHOLD,
    OPERATOR_TOKENS,
    SENSITIVITY_WINDOWS,
    WINDOW,
)
from intaglio.runtime.reports.wording import edited_lines
from intaglio.runtime.sweep.arguments import sweep_arguments
from intaglio.runtime.terminal import (
    forget_output,
    progress_line,
    say,
    warn,
    write,
    write_json,
    write_line,
)

if TYPE_CHECKING:
    from intaglio.backend.output.verified import OutputFiles
    from intaglio.backend.stages import Options

SUCCESS, FAILURE, BUG = 0, 1, 2


class _UsageError(Exception):
    """The command line cannot be understood."""

    def __init__(self, usage: str, message: str) -> None:
        super().__init__(f"{usage}{message}")


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting with 2, which means a bug here."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(self.format_usage(), f"{self.prog}: {message}")


@contextmanager
def _few_collections() -> Generator[None]:
    """Python looks for garbage less often: what a command makes it needs until it ends, and looking
    for more would take a twentieth of a compile."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


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
        with stopping(), _few_collections(), ExitStack() as args.ends:
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
        forget_output()
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
        warn(line)


def _fail(message: str, code: int) -> int:
    say(message.rstrip() + "\n")
    return code


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
    run_command.run_arguments(
        command("run", run_command.run, "Generate tokens, and count their cycles.")
    )
    _check_arguments(command("check", _check, "Compare a compiled model with onnxruntime."))

    _adapter_arguments(commands, common)

    serve_command.serve_arguments(
        command("serve", serve_command.run, "Answer requests as OpenAI's server does.")
    )

    inspect = command("inspect", _inspect, "Show memory by use, cycles, power, what they go into.")
    folder_arguments(inspect)
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
    inspect.add_argument(
        "--beats",
        action="store_true",
        help="perfetto: also what each queue takes at once, with an arrow for each wait",
    )
    inspect.add_argument("-o", dest="file", metavar="FILE", help="write to a file")

    sweep = command(
        "sweep", _sweep, "Evaluate many choices of a chip for a model, and compare them."
    )
    _model_arguments(sweep)
    sweep_arguments(sweep)

    targets = command("targets", _targets, "List the targets, or one with all its figures.")
    targets.add_argument("name", metavar="NAME", nargs="?", help="a target, or its TOML file")
    targets.add_argument("--json", action="store_true")

    ops = command("ops", _ops, "List the ONNX operators that are supported.")
    ops.add_argument(
        "--instructions",
        action="store_true",
        help="the chip's instructions instead: values, roles, arguments with their widths",
    )
    ops.add_argument("--json", action="store_true")
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from importlib.metadata import version

        write(f"intaglio {version('intaglio')}\n")
        parser.exit()


def _compile_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
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


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    """What is compiled for what."""
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
        "--in-flight",
        metavar="K",
        type=int,
        help="tokens that the chip works on at once: those of a prompt follow each other as soon "
        "as they may (--set policy.in_flight=K)",
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


def _adapter_arguments(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "Add, list or remove adapters of a compiled model."
    parser = commands.add_parser("adapter", parents=[common], help=text, description=text)
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        added = actions.add_parser(name, parents=[common], help=text, description=text)
        added.set_defaults(run=run)
        folder_arguments(added)
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


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    folder_arguments(parser)
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
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="with --text: rank the formats of matrices' inputs, KV, queries and probabilities by "
        f"what they cost on it ({SENSITIVITY_WINDOWS} windows unless told), and recommend settings",
    )
    adapter_argument(parser)
    parser.add_argument("--json", action="store_true")
    trace_arguments(parser)
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
    from intaglio.runtime.expected_tokens import expected_tokens

    options = replace(_options(args), emit=args.emit, reference=args.reference)
    with progress_line() as progress:
        compiled = compile_model(args.model, args.out, options, progress, expected_tokens)
    is_whole = args.emit in (None, "program", *HARDWARE_STAGES)
    judged = is_whole and args.reference
    for warning in (*compiled.warnings, *(_unjudged(compiled.folder) if judged else ())):
        warn(warning)
    write_line(f"{args.model} for {args.target}: {compiled.folder}")
    if is_whole:
        from intaglio.runtime.reports.inspect import inspect_json
        from intaglio.runtime.reports.tables import summary_lines

        for line in summary_lines(inspect_json(compiled.folder, program=compiled.program)):
            write_line(f"  {line}")
    return SUCCESS


def _sweep(args: argparse.Namespace) -> int:
    from intaglio.runtime.sweep.command import run

    return run(args, _options(args), [] if args.position is None else _positions(args.position))


def _options(args: argparse.Namespace) -> Options:
    """What `_model_arguments` took, with the last stage a program."""
    from intaglio.backend.stages import Options
    from intaglio.backend.target.target import load_target
    from intaglio.runtime.chip import check_residents, parse_slots

    if args.context is not None and args.context < 1:
        raise UserError(f"--context {args.context}: a KV cache holds at least one token")
    # A wrong target or setting is found before a large model is read.
    if args.in_flight is not None:
        args.settings.append(f"policy.in_flight={args.in_flight}")
    load_target(args.target).with_options(args.settings)
    rank, modules = parse_slots(args.adapter_slots)
    check_residents(args.resident_adapters, rank)
    return Options(
        target=args.target,
        settings=tuple(args.settings),
        context=args.context,
        weights=args.weights,
        adapter_rank=rank,
        adapter_modules=modules,
        resident_adapters=args.resident_adapters,
        mapping=args.mapping,
        allow_links=args.allow_links,
    )


def _unjudged(folder: Path) -> Iterator[str]:
    """That `check` will have no judge, where the graph itself says so."""
    from intaglio.runtime.judge.judgeable import why_not
    from intaglio.runtime.judge.reference import model_of

    if (reason := why_not(model_of(folder))) is not None:
        yield (
            f"onnxruntime cannot judge this model on a CPU: {reason}; check --engine rtl compares "
            "hardware and simulator alone"
        )


def _check(args: argparse.Namespace) -> int:
    from intaglio.runtime.judge.check import check
    from intaglio.runtime.judge.report import check_tolerances, missed, parse_tolerance, text_lines

    tolerances = [parse_tolerance(text) for text in args.tolerances]
    if args.windows is not None and args.text is None:
        raise UserError("--windows: only with --text")
    check_tolerances(tolerances, text=args.text is not None, per_op=args.per_op)
    if args.sensitivity:
        return _sensitivity(args)
    if args.stress:
        from intaglio.runtime.judge.stress import check_engine

        check_engine(args.engine)
    prompt_ids = None if args.prompt_ids is None else token_ids(args.prompt_ids)
    chip = loaded(args)
    announce(args, chip, HARDWARE_TOKENS if args.tokens is None else max(1, args.tokens))
    args.ends.enter_context(traced(args, chip))
    with progress_line() as progress:
        result = check(
            chip,
            prompt_ids=prompt_ids,
            tokens=args.tokens,
            text=args.text,
            windows=args.windows,
            per_op=args.per_op,
            engine=args.engine,
            adapter=args.adapter,
            stress=args.stress,
            progress=progress,
            announce=lambda line: say(f"{line}\n"),
        )
    if chip.edited:
        result["edited"] = list(chip.edited)
    failures = missed(result, tolerances)
    if result.get("hardware_difference"):
        failures.append(f"hardware and simulator differ: {result['hardware_difference']}")
    if args.json:
        write_json(result)
    else:
        for line in (*text_lines(result), *edited_lines(chip.edited)):
            write_line(line)
    for line in failures:
        say(f"{args.out}: {line}\n")
    return FAILURE if failures else SUCCESS


def _sensitivity(args: argparse.Namespace) -> int:
    from intaglio.runtime.judge.sensitivity import sensitivity, sensitivity_lines

    if args.text is None:
        raise UserError("--sensitivity: only with --text")
    others = {
        "--per-op": args.per_op,
        "--stress": args.stress,
        "--tolerance": args.tolerances,
        "--tokens": args.tokens is not None,
        "--adapter": args.adapter is not None,
        f"--engine {args.engine}": args.engine != CHECKED_ENGINES[0],
    }
    if given := [name for name, there in others.items() if there]:
        raise UserError(
            f"--sensitivity: not with {', '.join(given)}",
            hint="it measures formats on the simulator, of the base, over --windows of the text",
        )
    chip = loaded(args)
    with progress_line() as progress:
        result = sensitivity(chip, args.text, windows=args.windows, progress=progress)
    if chip.edited:
        result["edited"] = list(chip.edited)
    if args.json:
        write_json(result)
    else:
        for line in (*sensitivity_lines(result), *edited_lines(chip.edited)):
            write_line(line)
    return SUCCESS


def _adapter_add(args: argparse.Namespace) -> int:
    from intaglio.runtime.adapters.adapters import summary_lines

    with progress_line() as progress:
        summary = loaded(args).adapters.add(args.name, args.file, progress)
    for warning in summary.warnings:
        warn(f"{args.file}: {warning}")
    if args.json:
        write_json(summary.content() | {"warnings": list(summary.warnings)})
    else:
        for line in summary_lines(summary):
            write_line(line)
    return SUCCESS


def _adapter_list(args: argparse.Namespace) -> int:
    from intaglio.runtime.adapters.adapters import list_content, list_lines

    adapters = loaded(args).adapters
    if args.json:
        write_json(list_content(adapters))
    else:
        for line in list_lines(adapters):
            write_line(line)
    return SUCCESS


def _adapter_remove(args: argparse.Namespace) -> int:
    loaded(args).adapters.remove(args.name)
    return SUCCESS


def _inspect(args: argparse.Namespace) -> int:
    from intaglio.backend.output.verified import OutputFiles

    positions = None if args.position is None else _positions(args.position)
    if args.beats and args.format != "perfetto":
        raise UserError(
            f"--beats: the format {args.format} shows no single beats",
            hint="--format perfetto does",
        )
    files = OutputFiles(Path(args.out), trust_edited=args.trust_edited, again=args.verify)
    text = _inspected(args.out, args.format, positions, files, beats=args.beats)
    if args.file is None:
        write(printable(text) if args.format == "text" else text)
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


def _inspected(
    out: str,
    form: str,
    positions: Sequence[int] | None,
    files: OutputFiles,
    *,
    beats: bool = False,
) -> str:
    """The report of an output folder in one of its forms."""
    from intaglio.backend.program.program import PROGRAM
    from intaglio.backend.target.file import TARGET

    def verify() -> None:
        # Behind the reading, which says more where a value is wrong.
        files.verify([PROGRAM, MAPPING, TARGET])
        for line in edited_lines(files.edited):
            warn(line.strip())

    if form == "perfetto":
        from intaglio.runtime.reports.perfetto import perfetto_text

        where = None if positions is None else positions[-1]
        text = perfetto_text(out, where, beats=beats)
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
    return text + "".join(f"{line}\n" for line in edited_lines(files.edited))


def _targets(args: argparse.Namespace) -> int:
    from intaglio.backend.target import report as target_report
    from intaglio.backend.target.target import load_target, target_names

    if args.name is not None:
        target = load_target(args.name)
        if args.json:
            write_json(target_report.shown_json(target))
        else:
            write(printable(target_report.target_text(target)))
        return SUCCESS
    targets = [load_target(name) for name in target_names()]
    if args.json:
        write_json(target_report.list_json(targets))
    else:
        write(printable(target_report.list_text(targets)))
    return SUCCESS


def _instructions(as_json: bool) -> int:
    from dataclasses import asdict

    from intaglio.dialects.isa.reference import entries, lines

    if as_json:
        write_json({"schema": 1, "instructions": [asdict(entry) for entry in entries()]})
        return SUCCESS
    write("\n\n".join("\n".join(lines(entry)) for entry in entries()) + "\n")
    return SUCCESS


def _ops(args: argparse.Namespace) -> int:
    import textwrap

    if args.instructions:
        return _instructions(args.json)
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
        write_json({"schema": 1, "operators": entries})
        return SUCCESS
    width = max(80, shutil.get_terminal_size((100, 24)).columns)
    domain = ""
    for entry in entries:
        if entry["domain"] != domain:
            write(("\n" if domain else "") + f"{entry['domain']}\n")
            domain = entry["domain"]
        name = f"  {entry['op_type']} (since {entry['since']})"
        text = entry["becomes"] + (f"; {entry['limits']}" if entry["limits"] else "")
        lines = textwrap.wrap(text, width - 44, break_on_hyphens=False)
        write(f"{name:<43} {lines[0]}\n")
        for line in lines[1:]:
            write(f"{'':<44}{line}\n")
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
