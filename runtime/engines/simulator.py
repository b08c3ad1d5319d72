"""The functional simulator: runs a program's instructions, bit for bit as the chip does.

Every operator is the function of `dialects/semantics.py`, computed by the compiled kernels of
`runtime/engines/vector_kernels.py`; products with matrices use those of
`runtime/engines/kernels.py` on the memory-mapped ROM image. Both are equal to `semantics` bit for
bit. Several tokens may go through together (prefill, teacher forcing): each sees only its
predecessors, so the result is that of one token at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.images.adapter import AdapterImage, SiteImage
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import Block, Cache, Instruction, Program, real
from intaglio.dialects import semantics
from intaglio.dialects.codes import FORMATS, Matrix, decode
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.fixed_point import Saturations, Scale, shift_saturate
from intaglio.dialects.formulas.elementwise import ELEMENTWISE, Constants, Elementwise
from intaglio.dialects.formulas.softmax import SCORE_FRAC
from intaglio.dialects.semantics import Quantized
from intaglio.runtime.adapters.slots import Residents, check_fits, ranks_of
from intaglio.runtime.engines import vector_kernels

Ints = npt.NDArray[np.int64]
Observer = Callable[[Instruction, int, list[npt.NDArray[np.float64]]], None]
"""Called after an instruction with its instance and, as floats, what it wrote: [S, N] each."""

_CODE_TYPES = {"int8": np.int8, "int4": np.int8, "fp8": np.uint8, "int16": np.int16}


@dataclass
class Probabilities:
    """What softmax leaves: codes [S, heads, T], the first cached token they are of, the sums."""

    quantized: Quantized
    total: Ints
    first: int


@dataclass
class Store:
    """The content of a cache.

    Codes are [heads, capacity, width]; dynamic scales [heads, capacity], static ones without axes.
    """

    cache: Cache
    codes: npt.NDArray[Any]
    scale: Scale

    @staticmethod
    def empty(cache: Cache) -> Store:
        """A cache without tokens."""
        shape = cache.heads, cache.capacity
        codes = np.zeros((*shape, cache.width), _CODE_TYPES[cache.format])
        if cache.static_scale is not None:
            return Store(cache, codes, Scale.of(cache.static_scale))
        return Store(cache, codes, Scale(np.zeros(shape, np.int64), np.zeros(shape, np.int64)))

    def append(self, value: Quantized, first: int) -> None:
        """Writes tokens [S, heads * width] from position `first` on."""
        count = value.codes.shape[0]
        where = slice(first, first + count)
        by_head = value.codes.reshape(count, self.cache.heads, self.cache.width)
        self.codes[:, where] = by_head.swapaxes(0, 1)
        if self.cache.static_scale is None:
            self.scale.mantissa[:, where] = value.scale.mantissa.T
            self.scale.exponent[:, where] = value.scale.exponent.T

    def read(self, where: slice) -> tuple[npt.NDArray[Any], Scale]:
        """Codes and scales of a range of tokens."""
        if self.cache.static_scale is not None:
            return self.codes[:, where], self.scale
        scale = Scale(self.scale.mantissa[:, where], self.scale.exponent[:, where])
        return self.codes[:, where], scale


@dataclass
class Context:
    """The tokens at hand."""

    tokens: Ints
    first: int
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def positions(self) -> Ints:
        """The position of each token."""
        return np.arange(self.first, self.first + len(self.tokens))


Action = Callable[[Context], Any]


class Simulator:
    """Runs a program.

    Args:
        program: what `load_program` gave.
        folder: the output folder with the images.
        reference: use `semantics` itself instead of the compiled kernels.
        images: tensors to use instead of the folder's.
    """

    def __init__(
        self,
        program: Program,
        folder: Path,
        *,
        reference: bool = False,
        images: Images | None = None,
    ) -> None:
        self.program, self._folder = program, folder
        self.vocabulary = program.vocabulary
        self.capacity = program.capacity
        self.fraction_bits: int = program.buffers[program.logits].type["fraction"]
        self._images = Images(program, folder) if images is None else images
        self._reference = reference
        self._ops: ModuleType = semantics if reference else vector_kernels
        self._counter = Saturations()
        self.stores: dict[str, Store] = {}
        self._adapter: dict[str, SiteImage] = {}
        self._residents = Residents(program)
        self.ranks: dict[str, int] = {}
        """The active adapter's, by site."""
        self.reset()
        self._steps = [(block, list(self._prepare(block))) for block in program.blocks]

    def with_fraction_bits(self, bits: int) -> Simulator:
        """A simulator without tokens whose values all have other fraction bits, to try them.

        What `--set fraction_bits` compiles, but for biases, which are rounded from those that are
        engraved here. The active adapter is the same.
        """
        buffers = {
            name: replace(one, type={**one.type, "fraction": bits})
            if one.type["kind"] == "fixed"
            else one
            for name, one in self.program.buffers.items()
        }
        program = replace(self.program, buffers=buffers)
        other = Simulator(program, self._folder, reference=self._reference)
        other._adapter.update(self._adapter)
        other.ranks = dict(self.ranks)
        return other

    def reset(self) -> None:
        """Forgets all tokens and saturations."""
        self.stores.update({name: Store.empty(c) for name, c in self.program.caches.items()})
        self._counter.count = 0

    def load_adapter(self, image: AdapterImage | None) -> int:
        """Makes an adapter the active one; tokens already run stay as they are.

        Args:
            image: the adapter; None: no adapter.

        Returns:
            Cycles in which the chip's load port takes it, or the word that switches to a resident.

        Raises:
            UserError: the adapter does not fit the slots.
        """
        if image is not None:
            check_fits(self.program, image)
        self._adapter.clear()
        for name, one in () if image is None else image.sites.items():
            site = self.program.sites[name]
            if one.rank:
                self._adapter[site.a] = self._adapter[site.b] = one
        self.ranks = ranks_of(image)
        return self._residents.use(image).cycles

    @property
    def saturations(self) -> int:
        """Values that did not fit since the last reset."""
        return self._counter.count

    def step(self, token: int, position: int, sample: bool = True) -> tuple[Ints, int] | None:
        """One token; the logits [V] and the next token when `sample`, else None."""
        context = self._run(np.array([token]), position, sample, None)
        if not sample:
            return None
        logits = context.values[self.program.logits]
        return logits[0], int(context.values[self.program.token][0])

    def forward(
        self,
        tokens: npt.ArrayLike,
        first_position: int = 0,
        logits: bool = True,
        observe: Observer | None = None,
    ) -> Ints | None:
        """Several tokens at once.

        Args:
            tokens: ids [S].
            first_position: position of the first; earlier positions must have been run.
            logits: whether to run the head.
            observe: called with what each instruction wrote.

        Returns:
            int64 [S, vocabulary], or None without `logits`.

        Raises:
            UserError: a token id or position is out of range.
        """
        context = self._run(np.atleast_1d(tokens), first_position, logits, observe)
        return context.values[self.program.logits] if logits else None

    def _run(
        self, tokens: npt.NDArray[Any], first: int, sample: bool, observe: Observer | None
    ) -> Context:
        tokens = tokens.astype(np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            wrong = next(int(t) for t in tokens if not 0 <= t < self.vocabulary)
            raise UserError(
                f"token id {wrong} is out of range",
                hint=f"ids of this model go from 0 to {self.vocabulary - 1}",
            )
        if first < 0 or first + len(tokens) > self.capacity:
            raise UserError(
                f"position {first + len(tokens) - 1} is beyond the chip's context of "
                f"{self.capacity} tokens",
                hint="compile with a longer --context",
            )
        context = Context(tokens, first)
        context.values["token"] = tokens
        for block, instances in self._steps:
            if block.sampled and not sample:
                continue
            for instance, actions in enumerate(instances):
                for instruction, action in zip(block.instructions, actions, strict=True):
                    result = action(context)
                    for name in instruction.writes:
                        context.values[name] = result
                    if observe is not None:
                        observe(instruction, instance, self._floats(instruction, result))
        return context

    def _floats(self, instruction: Instruction, result: Any) -> list[npt.NDArray[np.float64]]:
        floats: list[npt.NDArray[np.float64]] = []
        for name in instruction.writes:
            match result:
                case Quantized():
                    floats.append(result.values)
                case Probabilities():
                    codes, scale, _ = result.quantized
                    floats.append(codes * scale.values[..., None])
                case _:
                    fraction = self.program.buffers[name].type.get("fraction", 0)
                    floats.append(np.ldexp(result.astype(np.float64), -fraction))
        return floats

    # Binding instructions to what they use

    def _prepare(self, block: Block) -> Iterator[list[Action]]:
        readers = _readers(self.program, block)
        for instance in block.instances:
            actions: list[Action] = []
            for instruction, reads in zip(block.instructions, readers, strict=True):
                uses = {role: instance[slot] for role, slot in instruction.uses.items()}
                bind = _BINDERS[instruction.opcode]
                actions.append(bind(self, instruction, uses, reads))
            yield actions

    def _fraction(self, name: str) -> int:
        return self.program.buffers[name].type["fraction"]

    def _vector(self, name: str) -> Ints:
        return self._images.dense(name).astype(np.int64)

    def _addend(self, name: str, frac: int) -> Ints:
        """A vector that is added to values of `frac` fraction bits, which is its own as a rule."""
        values = self._vector(name)
        more = self.program.parameters[name].exponent - frac
        return shift_saturate(values, more) if more else values

    def _product(self, matrix: Matrix, fmt: str) -> Callable[[Ints], Ints]:
        """The exact product of codes [S, K] with a matrix."""
        fits = matrix.group % 16 == 0 or matrix.group >= matrix.columns
        if self._reference or not fits:
            return lambda codes: semantics.dot(codes, matrix, fmt)
        from intaglio.runtime.engines import kernels

        packed = kernels.PackedMatrix(
            matrix.codes,
            matrix.scales,
            matrix.zero,
            matrix.bits,
            matrix.group,
            matrix.columns,
            matrix.offsets,
            matrix.offset_bits,
        )
        narrow = np.int8 if FORMATS[fmt].decoded_bits <= 8 else np.int32

        def product(codes: Ints) -> Ints:
            x = decode(codes, fmt).astype(narrow)
            if len(x) == 1:
                return kernels.matvec(packed, x[0])[None]
            return kernels.matmul(packed, x)

        return product

    def _embed(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        parameter = self.program.parameters[uses["table"]]
        frac, counter = self._fraction(one.writes[0]), self._counter
        if parameter.code.startswith("fixed"):
            table = self._images.dense(parameter.name)
            return lambda c: self._ops.embed(
                table[c.tokens].astype(np.int64), parameter.exponent, frac, saturations=counter
            )
        matrix = self._images.matrix(parameter.name)
        return lambda c: self._ops.embed(
            matrix.values(c.tokens), matrix.exponent, frac, saturations=counter
        )

    def _slot(self, one: Instruction, slot: str, reads: Sequence[Action]) -> Action:
        """The product with A or B of whatever adapter is loaded."""
        site, half = self.program.slots[slot]
        fmt = self.program.buffers[one.reads[0]].type["format"]
        shift, frac = one.arguments["pre_shift"], self._fraction(one.writes[0])
        size, counter = site.rank if half == "a" else site.rows, self._counter

        def run(c: Context) -> Ints:
            x: Quantized = reads[0](c)
            residual = reads[1](c) if len(reads) > 1 else None
            adapter = self._adapter.get(slot)
            if adapter is None:
                return np.zeros((len(x.codes), size), np.int64) if residual is None else residual
            if half == "a":
                y = np.zeros((len(x.codes), size), np.int64)
                y[:, : adapter.rank] = semantics.dot(x.codes, adapter.a, fmt)
                exponent = adapter.a.exponent
            else:
                codes = np.ascontiguousarray(x.codes[:, : adapter.rank])
                y, exponent = semantics.dot(codes, adapter.b, fmt), adapter.b.exponent
            return self._ops.requantize(
                y, x.scale, exponent, shift, frac, residual=residual, saturations=counter
            )

        return run

    def _matvec(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        if uses["weights"] in self.program.slots:
            return self._slot(one, uses["weights"], reads)
        fmt = self.program.buffers[one.reads[0]].type["format"]
        matrix = self._images.matrix(uses["weights"])
        product = self._product(matrix, fmt)
        shift, frac = one.arguments["pre_shift"], self._fraction(one.writes[0])
        bias = self._addend(uses["bias"], frac) if "bias" in uses else None
        counter = self._counter

        def run(c: Context) -> Ints:
            x: Quantized = reads[0](c)
            residual = reads[1](c) if len(reads) > 1 else None
            return self._ops.requantize(
                product(x.codes),
                x.scale,
                matrix.exponent,
                shift,
                frac,
                bias,
                residual,
                counter,
            )

        return run

    def _norm(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        gamma = self._vector(uses["gamma"])
        exponent = self.program.parameters[uses["gamma"]].exponent
        eps = real(one.arguments["eps"])
        fractions = self._fraction(one.reads[0]), self._fraction(one.writes[0])
        counter = self._counter
        groups, centred = one.arguments.get("groups", 1), one.opcode == "layer_norm"
        beta = self._addend(uses["beta"], fractions[1]) if "beta" in uses else None
        return lambda c: self._ops.norm(
            reads[0](c),
            gamma,
            exponent,
            eps,
            *fractions,
            groups,
            counter,
            centred=centred,
            beta=beta,
        )

    def _quantize(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        frac = self._fraction(one.reads[0])
        kind = self.program.buffers[one.writes[0]].type
        fmt, groups, counter = kind["format"], kind["groups"], self._counter
        if "scale_of" not in uses:
            return lambda c: self._ops.quantize(reads[0](c), fmt, frac, groups)
        cache = self.program.caches[uses["scale_of"]]
        assert cache.static_scale is not None and cache.static_inverse is not None
        inverse, scale = cache.static_inverse, Scale.of(cache.static_scale)

        def run(c: Context) -> Quantized:
            codes = self._ops.quantize_static(reads[0](c), fmt, inverse, frac, counter)
            shape = (len(codes), groups)
            return Quantized(
                codes,
                Scale(
                    np.broadcast_to(scale.mantissa, shape), np.broadcast_to(scale.exponent, shape)
                ),
                fmt,
            )

        return run

    def _rotary(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        # Indexing a memory map itself costs more than the whole operator.
        cos, sin = (np.asarray(self._images.dense(uses[name])) for name in ("cos", "sin"))
        heads, counter = one.arguments["heads"], self._counter
        interleaved = one.arguments.get("interleaved", False)
        frac = self.program.parameters[uses["cos"]].exponent
        return lambda c: self._ops.rotary(
            reads[0](c), cos[c.positions], sin[c.positions], heads, interleaved, counter, frac
        )

    def _append(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        name = uses["cache"]
        return lambda c: self.stores[name].append(reads[0](c), c.first)

    def _query_key(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        name, cache = uses["keys"], self.program.caches[uses["keys"]]
        kind = self.program.buffers[one.reads[0]].type
        heads, width, fmt = kind["groups"], kind["width"], kind["format"]
        factor, shift = real(one.arguments["score_scale"]), one.arguments["pre_shift"]
        window, counter = one.arguments["window"], self._counter
        after: list[tuple[Elementwise, Constants[int]]] = []
        if "cap" in one.arguments:
            inverse, cap, log2e = (real(one.arguments[n]) for n in ("cap_inverse", "cap", "log2e"))
            capped, scaled = ELEMENTWISE["softcap"], ELEMENTWISE["scale"]
            fractions = (SCORE_FRAC,), SCORE_FRAC
            after = [
                (capped, capped.constants(*fractions, {"inverse": inverse, "cap": cap})),
                (scaled, scaled.constants(*fractions, {"factor": log2e})),
            ]

        def run(c: Context) -> Ints:
            q: Quantized = reads[0](c)
            codes = q.codes.reshape(len(q.codes), heads, width)
            keys, scale = self.stores[name].read(_span(c, window))
            dots = self._ops.query_key(codes, keys, fmt, cache.format)
            scores = self._ops.score_scale(dots, q.scale, scale, factor, shift, counter)
            for formula, constants in after:
                scores = self._ops.elementwise(formula, (scores,), constants, counter)
            return scores

        return run

    def _softmax(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        name, window = uses["values"], one.arguments["window"]
        fmt = self.program.buffers[one.writes[0]].type["format"]

        def run(c: Context) -> Probabilities:
            span = _span(c, window)
            _, scale = self.stores[name].read(span)
            mask = None
            if len(c.tokens) > 1:
                every = semantics.attention_mask(c.positions, span.stop, window or None)
                mask = every[:, span]
            return Probabilities(
                *self._ops.softmax(reads[0](c), scale, fmt, mask), first=span.start
            )

        return run

    def _weighted_sum(
        self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]
    ) -> Action:
        name, cache = uses["values"], self.program.caches[uses["values"]]
        shift, frac = one.arguments["pre_shift"], self._fraction(one.writes[0])
        window, counter = one.arguments["window"], self._counter

        def run(c: Context) -> Ints:
            p: Probabilities = reads[0](c)
            values, _ = self.stores[name].read(_span(c, window))
            sums = self._ops.weighted_sum(
                p.quantized.codes, values, p.quantized.format, cache.format
            )
            scale = self._ops.multiply(p.quantized.scale, self._ops.reciprocal_scale(p.total))
            return self._ops.requantize(
                sums.reshape(len(c.tokens), -1), scale, 0, shift, frac, saturations=counter
            )

        return run

    def _elementwise(
        self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]
    ) -> Action:
        into, counter = self._fraction(one.writes[0]), self._counter
        fractions = [self._fraction(name) for name in one.reads]
        if one.opcode == "copy":
            return reads[0]
        given = dict(one.arguments)
        formula = ELEMENTWISE[given.pop("kind", one.opcode)]
        reals = {name: real(value) for name, value in given.items()}
        constants = formula.constants(fractions, into, reals)
        first, last = reads[0], reads[-1]
        if formula.operands == 1:
            return lambda c: self._ops.elementwise(formula, (first(c),), constants, counter)
        return lambda c: self._ops.elementwise(formula, (first(c), last(c)), constants, counter)

    def _switch(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        """ROM banks on or off: that they are on when they are read is a matter of time."""
        return lambda c: None

    def _sample(self, one: Instruction, uses: dict[str, str], reads: Sequence[Action]) -> Action:
        return lambda c: self._ops.argmax(reads[0](c))


_BINDERS: dict[str, Callable[..., Action]] = {
    "embed": Simulator._embed,
    "matvec": Simulator._matvec,
    "rms_norm": Simulator._norm,
    "layer_norm": Simulator._norm,
    "quantize": Simulator._quantize,
    "rotary": Simulator._rotary,
    "append": Simulator._append,
    "query_key": Simulator._query_key,
    "softmax": Simulator._softmax,
    "weighted_sum": Simulator._weighted_sum,
    "add": Simulator._elementwise,
    "mul": Simulator._elementwise,
    "scale": Simulator._elementwise,
    "softcap": Simulator._elementwise,
    "activate": Simulator._elementwise,
    "copy": Simulator._elementwise,
    "sample": Simulator._sample,
    "wake": Simulator._switch,
    "sleep": Simulator._switch,
}


def _span(context: Context, window: int) -> slice:
    """Cached tokens that any of the tokens at hand sees."""
    first = max(0, context.first - window + 1) if window else 0
    return slice(first, context.first + len(context.tokens))


def _readers(program: Program, block: Block) -> list[list[Action]]:
    """How each instruction gets its operands: a value by name, or a part of one.

    A buffer that no instruction writes is a part of the buffer written last around its place.

    Raises:
        CompilerBug: an instruction reads what nothing has written.
    """
    written = {name for b in program.blocks for one in b.instructions for name in one.writes}
    order: list[str] = []
    for other in program.blocks:
        if other is block:
            break
        order += [name for one in other.instructions for name in one.writes]
    readers: list[list[Action]] = []
    for one in block.instructions:
        actions: list[Action] = []
        for name in one.reads:
            if name in written or name == "token":
                actions.append(lambda c, name=name: c.values[name])
                continue
            actions.append(_part(program, name, order))
        readers.append(actions)
        order += one.writes
    return readers


def _part(program: Program, name: str, order: Sequence[str]) -> Action:
    part = program.span(name)
    for source_name in reversed(order):
        source = program.span(source_name)
        if part is None or source is None or program.buffers[source_name].type["kind"] != "fixed":
            continue
        if part.memory == source.memory and source.first <= part.first and part.last <= source.last:
            where = slice(part.first - source.first, part.last - source.first)
            return lambda c: c.values[source_name][:, where]
    raise CompilerBug(f"nothing writes buffer {name} before it is read")
