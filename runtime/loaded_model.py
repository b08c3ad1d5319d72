"""A compiled model with what runs it and what judges it, all with the same adapter active."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.names import CHECKED_ENGINES, HARDWARE_ENGINES, check_known
from intaglio.runtime.reports.wording import counted

if TYPE_CHECKING:
    from intaglio.backend.images.adapter import AdapterImage
    from intaglio.backend.program.program import Program
    from intaglio.runtime.adapters.adapters import Adapters
    from intaglio.runtime.adapters.slots import Residents
    from intaglio.runtime.engines.rtl import RTLChip
    from intaglio.runtime.engines.simulator import Simulator
    from intaglio.runtime.judge.reference import Reference
    from intaglio.runtime.text.end_tokens import EndTokens
    from intaglio.runtime.text.tokenizer import Tokenizer


class LoadedModel:
    """A compiled model in its output folder.

    Attributes:
        folder: the output folder.
        files: its files, each of which is verified before it is used.
    """

    def __init__(
        self, folder: str | Path, *, trust_edited: bool = False, verify: bool = False
    ) -> None:
        from intaglio.backend.output.verified import OutputFiles

        self.folder = Path(folder)
        self.files = OutputFiles(self.folder, trust_edited=trust_edited, again=verify)
        self._hardware: dict[str, RTLChip] = {}
        self._adapter: AdapterImage | None = None

    @cached_property
    def program(self) -> Program:
        """The program and the machine it runs on."""
        from intaglio.backend.program.program import PROGRAM, load_program

        # Read first: where a value is wrong, that says more than a hash.
        program = load_program(self.folder)
        self.files.verify([PROGRAM])
        return program

    @property
    def edited(self) -> tuple[str, ...]:
        """Files that are not what the compile wrote, of those that were used so far."""
        return tuple(self.files.edited)

    def verify(self) -> None:
        """Whether all files are what the compile wrote.

        Raises:
            UserError: one is not, and edited files are not trusted.
        """
        self.verify_images()
        self.files.verify_all()

    def verify_images(self) -> None:
        """Whether the images of the chip's memories are what the compile wrote.

        Raises:
            UserError: names the tensors that are changed.
        """
        from intaglio.backend.images.read import Images

        images = Images(self.program, self.folder)
        images.check_sizes()
        self.files.verify(images.files, images.changes)

    @cached_property
    def simulator(self) -> Simulator:
        """The functional simulator."""
        from intaglio.runtime.engines.simulator import Simulator

        self.verify_images()
        with self._as_edited():
            simulator = Simulator(self.program, self.folder)
        self._fill(simulator)
        return simulator

    @contextmanager
    def _as_edited(self) -> Iterator[None]:
        """What an edited program makes impossible is no bug."""
        from intaglio.backend.program.program import PROGRAM

        try:
            yield
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            if PROGRAM not in self.edited:
                raise
            raise UserError(
                f"was edited, and cannot be run: {type(error).__name__} {error}",
                file=str(self.folder / PROGRAM),
                hint="compile the model again",
            ) from error

    @cached_property
    def _residents(self) -> Residents:
        from intaglio.runtime.adapters.slots import Residents

        return Residents(self.program)

    def _fill(self, machine: Simulator | RTLChip) -> None:
        """Brings a fresh machine to where the others are."""
        residents = self._residents.images
        for image in residents:
            machine.load_adapter(image)
        if residents and self._adapter is None:
            machine.load_adapter(None)

    def refill(self, hardware: RTLChip) -> None:
        """Gives hardware whose slots were written over the adapters that it had."""
        hardware.forget_adapters()
        self._fill(hardware)
        if not self._residents.images:
            hardware.load_adapter(self._adapter)

    @cached_property
    def model(self) -> Path:
        """The ONNX file that was compiled, which `--no-reference` leaves out of the folder."""
        from intaglio.backend.output.output import MANIFEST, REFERENCE, inside

        # The graph reads any of them by name.
        self.files.verify(self.files.below(REFERENCE))
        return inside(self.folder, self.files.manifest["model"].text(), MANIFEST)

    @property
    def judged(self) -> Path:
        """The ONNX file that onnxruntime runs as the judge: with the active adapter's branches.

        Raises:
            UserError: there is none.
        """
        from intaglio.backend.output.output import REFERENCE
        from intaglio.runtime.adapters.adapters import judged_with
        from intaglio.runtime.judge.reference import model_of

        model = model_of(self.folder)
        self.files.verify(self.files.below(REFERENCE))
        if self._adapter is None:
            return model
        return judged_with(self.folder, self.files.manifest)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if one lies beside it."""
        from intaglio.runtime.text.tokenizer import tokenizer_beside

        return tokenizer_beside(self.model)

    @cached_property
    def end_tokens(self) -> EndTokens:
        """Which tokens end a text, by the files beside the model."""
        from intaglio.runtime.text.end_tokens import end_tokens_beside

        return end_tokens_beside(self.model, self.tokenizer, self.program.vocabulary)

    @property
    def has_texts(self) -> bool:
        """Whether tokens stand for texts: there is a tokenizer, or they are bytes.

        They are where there are 256, or where all others have a role by the files beside the model,
        such as an end token.
        """
        from intaglio.runtime.text.tokenizer import BYTES

        others = range(BYTES, self.program.vocabulary)
        return self.tokenizer is not None or (
            self.program.vocabulary >= BYTES
            and len(others) <= len(self.end_tokens.special)
            and self.end_tokens.special.issuperset(others)
        )

    @property
    def text_tokenizer(self) -> Tokenizer:
        """What texts are encoded and decoded by.

        Raises:
            UserError: tokens stand for no texts.
        """
        from intaglio.runtime.text.tokenizer import BYTES, ByteTokenizer

        if self.tokenizer is not None:
            return self.tokenizer
        if not self.has_texts:
            raise UserError(
                f"the model has no tokenizer.json, and its {self.program.vocabulary:,} tokens are "
                f"not the {BYTES} bytes, so that it cannot be said which of them a text is",
                file=str(self.model),
                hint="compile the model with its tokenizer.json beside it, or give token ids",
            )
        return ByteTokenizer()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text by the model's tokenizer; its bytes without one.

        Raises:
            UserError: the model has neither a tokenizer nor a token for each byte, or the
                tokenizer fails or is another model's.
        """
        ids = self.text_tokenizer.encode(text, special)
        if ids and max(ids) >= self.program.vocabulary:
            raise UserError(
                f"the tokenizer gives token {max(ids)}, the model has {self.program.vocabulary:,}",
                file=str(self.model.with_name("tokenizer.json")),
                hint="it belongs to another model",
            )
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, by the model's tokenizer; bytes without one.

        Raises:
            UserError: tokens stand for no texts, or one is unknown.
        """
        vocabulary = self.program.vocabulary
        if unknown := [one for one in tokens if not 0 <= one < vocabulary]:
            raise UserError(
                f"token id {unknown[0]} is out of range",
                hint=f"ids of this model go from 0 to {vocabulary - 1}",
            )
        stream = self.text_tokenizer.stream()
        return "".join([*(stream.push(one) for one in tokens), stream.end()])

    def reference(self, *, float_activations: bool = False, **options: Any) -> Reference:
        """onnxruntime with the same model and the active adapter: see `judge/reference.py`."""
        from intaglio.runtime.judge.reference import Reference

        caches = self.program.caches.values()
        widths = {cache.width for cache in caches}
        if self._adapter is not None:
            options |= {"adapter": self.adapters.floats(self._adapter.name)}
        return Reference(
            self.judged,
            float_activations=float_activations,
            head_width=widths.pop() if len(widths) == 1 else None,
            capacity=self.program.capacity,
            **options,
        )

    def check_prompt(self, prompt: Sequence[int], tokens: int) -> None:
        """Whether a prompt and the tokens generated after it fit.

        Raises:
            UserError: says what is wrong with them.
        """
        if not prompt:
            raise UserError("the prompt is empty", hint="a model needs at least one token")
        if tokens < 1:
            raise UserError(f"cannot generate {tokens} tokens")
        vocabulary, capacity = self.program.vocabulary, self.program.capacity
        for token in prompt:
            if not 0 <= token < vocabulary:
                raise UserError(
                    f"token id {token} is out of range",
                    hint=f"ids of this model go from 0 to {vocabulary - 1}",
                )
        longer = self._longer()
        if len(prompt) > capacity:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, the KV caches hold {capacity}", hint=longer
            )
        if (needed := len(prompt) + tokens - 1) > capacity:
            raise UserError(
                f"{len(prompt)} prompt tokens and {tokens} generated ones need {needed} positions, "
                f"the KV caches hold {capacity}",
                hint=f"at most {counted(capacity - len(prompt) + 1, 'token')}; {longer}",
            )

    def _longer(self) -> str:
        """What gives a sequence more positions, or why nothing does."""
        known = self.files.manifest.get("positions")
        if known is None:
            return "compile with a longer --context, if the model's positions allow it"
        positions = known.integer(0)
        if not positions:
            return "compile with a longer --context"
        if positions > self.program.capacity:
            return f"compile with a --context of up to {positions}, the model's own positions"
        return (
            f"a longer --context is not possible: the model's own table has {positions} positions"
        )

    def machine(self, engine: str) -> Simulator | RTLChip:
        """The simulator, or the hardware in one of its two simulations; made once.

        Raises:
            UserError: the program needs what the hardware does not have, or a tool is missing.
        """
        check_known(engine, CHECKED_ENGINES)
        if engine == "simulator":
            return self.simulator
        if engine not in self._hardware:
            self._hardware[engine] = self._make_hardware(engine)
        return self._hardware[engine]

    def _make_hardware(self, engine: str, **trace: Any) -> RTLChip:
        from intaglio.backend.output.hardware_files import IR, VERILOG
        from intaglio.runtime.engines.rtl import RTLChip

        self.verify_images()
        self.files.verify([IR] if engine == HARDWARE_ENGINES[0] else [IR, *VERILOG])
        # Otherwise what runs is made from the IR, and nobody would see the edit.
        handed_out = any(name in self.edited for name in VERILOG)
        with self._as_edited():
            hardware = RTLChip(self.program, self.folder, engine, handed_out=handed_out, **trace)
        self._fill(hardware)
        return hardware

    @cached_property
    def adapters(self) -> Adapters:
        """The adapters of the output folder: add, list, remove."""
        from intaglio.runtime.adapters.adapters import Adapters

        return Adapters(self.folder, self.program)

    def use_adapter(self, name: str | None) -> int:
        """Makes an adapter of the output folder the active one; None is the base alone.

        Returns:
            Cycles in which the chip's load port takes it: one where several adapters are resident,
            and it is among them, or none is to be active.

        Raises:
            UserError: there is no such adapter, or it was made for another base.
        """
        return self.load_adapter(None if name is None else self.adapters.load(name))

    @property
    def adapter(self) -> AdapterImage | None:
        """The adapter that is active; None without."""
        return self._adapter

    @property
    def ranks(self) -> dict[str, int]:
        """The active adapter's ranks, by site."""
        from intaglio.runtime.adapters.slots import ranks_of

        return ranks_of(self._adapter)

    @property
    def residents(self) -> tuple[str, ...]:
        """Names of the adapters in the chip's slots, the one whose use is longest ago first."""
        return tuple(image.name for image in self._residents.images)

    def load_adapter(self, image: AdapterImage | None) -> int:
        """Makes an adapter the active one, in every engine; None is the base alone.

        Returns:
            Cycles in which the chip's load port takes it; see `use_adapter`.

        Raises:
            UserError: the adapter does not fit the chip's slots; the active one stays.
        """
        from intaglio.runtime.adapters.slots import check_fits

        if image is not None:
            check_fits(self.program, image)
        cycles = self._residents.use(image).cycles
        self._adapter = image
        if "simulator" in self.__dict__:
            self.simulator.load_adapter(image)
        for machine in self._hardware.values():
            machine.load_adapter(image)
        return cycles

    def trace(self, engine: str, path: str | Path, cycles: str = ":") -> None:
        """Writes a waveform of what a hardware engine does from now on.

        Args:
            engine: `rtl` or `verilator`.
            path: `.vcd`, or with `verilator` also `.fst`.
            cycles: FROM:TO, both included, counted from the first reset; either may be left out.

        Raises:
            UserError: the engine, the suffix or the range cannot be used.
        """
        from intaglio.runtime.engines.vcd import cycle_range

        if engine not in HARDWARE_ENGINES:
            raise UserError(
                f"engine '{engine}' has no waveforms", hint=f"{' and '.join(HARDWARE_ENGINES)} have"
            )
        self._hardware[engine] = self._make_hardware(
            engine, trace=Path(path), trace_cycles=cycle_range(cycles)
        )

    def trace_end(self, engine: str, keep: bool = True) -> None:
        """Completes the waveform of a hardware engine; or forgets it, and an earlier one stays."""
        if engine in self._hardware:
            self._hardware[engine].model.trace_end(keep)
