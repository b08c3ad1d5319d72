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
from intaglio.backend.program.program import Block, Cache, Instruction, Program
from intaglio.dialects import part_of, semantics
from intaglio.dialects.codes import Matrix, decode
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.fixed_point import Saturations, Scale, shift_saturate
from intaglio.dialects.formats import FORMATS, HEAD_FORMATS
from intaglio.dialects.formulas.arrays import Arrays
from intaglio.dialects.formulas.elementwise import Constants, Elementwise
from intaglio.dialects.formulas.heads import scale_of
from intaglio.dialects.formulas.routing import SHARE_FRAC
from intaglio.dialects.formulas.softmax import SCORE_FRAC
from intaglio.dialects.isa import values
from intaglio.dialects.isa.attention import OverTokens, QueryKey, WeightedSum
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.isa.matrix import Embed, ExpertMatvec, Product, Row
from intaglio.dialects.isa.power import Switch
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.vector import (
    Copy,
    Delay,
    ElementwiseInstruction,
    LayerNorm,
    OverScores,
    Quantize,
    QuantizeBlocks,
    QuantizeHeads,
    RMSNorm,
    RMSScale,
    Rotary,
    Route,
    Sample,
    ScaleBy,
    Softcap,
    SoftmaxPlaces,
    Tap,
    Weigh,
)
from intaglio.dialects.semantics import Matrices, Quantized, Routing
from intaglio.runtime.adapters.slots import Residents, check_fits, ranks_of
from intaglio.runtime.engines import vector_kernels

Ints = npt.NDArray[np.int64]
Observer = Callable[[Instruction, int, list[npt.NDArray[np.float64]]], None]
"""Called after an instruction with its instance and, as floats, what it wrote: [S, N] each."""

_CODE_TYPES = {
    "int8": np.int8,
    "int4": np.int8,
    "fp8": np.uint8,
    "int16": np.int16,
    "half8": np.int8,
}


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
        """A cache without tokens, as its memory has it: all bits are 0."""
        shape = cache.heads, cache.capacity
        codes = np.zeros((*shape, cache.width), _CODE_TYPES[cache.format])
        if cache.static_scale is not None:
            return Store(cache, codes, Scale.of(cache.static_scale))
        nothing = np.zeros(shape, np.int64)
        if cache.format in HEAD_FORMATS:
            scale = scale_of(Arrays(), nothing)
            return Store(cache, codes, Scale(scale.mantissa, scale.exponent))
        return Store(cache, codes, Scale(nothing, nothing.copy()))

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
class Kept:
    """What a sequence of tokens leaves in the chip's memories.

    Attributes:
        stores: the caches.
        states: what the last token left, by state; at position 0 it counts as zeros.
        matrices: what the last token left of linear attention, by state; the same.
        saturations: values that did not fit; of what the simulator works on, as they were when it
            began with it.
    """

    stores: dict[str, Store]
    states: dict[str, Ints]
    matrices: dict[str, Matrices]
    saturations: int = 0

    @staticmethod
    def empty(program: Program) -> Kept:
        """Without tokens."""
        return Kept(
            {name: Store.empty(one) for name, one in program.caches.items()},
            {name: np.zeros(one.size, np.int64) for name, one in program.states.items()},
            {name: _forgotten(program, name) for name in program.matrices},
        )


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
        self.fraction_bits = program.fraction(program.logits)
        self._images = Images(program, folder) if images is None else images
        self._reference = reference
        self._ops: ModuleType = semantics if reference else vector_kernels
        self._counter = Saturations()
        self.kept = Kept.empty(program)
        """What it works on; see `use`."""
        self._adapter: dict[str, SiteImage] = {}
        self._residents = Residents(program)
        self.ranks: dict[str, int] = {}
        """The active adapter's, by site."""
        self.forced: dict[tuple[int, int], Sequence[int]] = {}
        """Experts that are taken whatever the router says, by the router's number in the order of
        execution and the token's position: what a comparison asks for."""
        self._routers = 0
        self._steps = [(block, list(self._prepare(block))) for block in program.blocks]

    def with_fraction_bits(self, bits: int) -> Simulator:
        """A simulator without tokens whose values all have other fraction bits, to try them.

        What `--set fraction_bits` compiles, but for biases, which are rounded from those that are
        engraved here. The active adapter is the same.
        """
        buffers = {
            name: replace(one, type=replace(one.type, fraction=bits))
            if isinstance(one.type, values.Fixed)
            else one
            for name, one in self.program.buffers.items()
        }
        program = replace(self.program, buffers=buffers)
        other = Simulator(program, self._folder, reference=self._reference)
        other._adapter.update(self._adapter)
        other.ranks = dict(self.ranks)
        return other

    def reset(self) -> None:
        """Forgets all tokens and saturations; what others use is left alone."""
        self.use(Kept.empty(self.program))

    def use(self, kept: Kept) -> None:
        """Works on other memories from now on; those that it worked on stay as they are."""
        self.kept.saturations = self._counter.count
        self.kept, self._counter.count = kept, kept.saturations

    @property
    def stores(self) -> dict[str, Store]:
        """The caches that it works on."""
        return self.kept.stores

    @property
    def states(self) -> dict[str, Ints]:
        """What the last token left, by state."""
        return self.kept.states

    @property
    def matrices(self) -> dict[str, Matrices]:
        """What the last token left of linear attention, by state."""
        return self.kept.matrices

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
        if not sample:
            self._run(np.array([token]), position, sample, None)
            return None
        return self.steps([token], position)[0]

    def steps(self, tokens: Sequence[int], position: int) -> list[tuple[Ints, int]]:
        """Several tokens from a position on: after each the logits [V] and the next token."""
        context = self._run(np.array(tokens), position, True, None)
        following = context.values[self.program.token].tolist()
        return list(zip(context.values[self.program.logits], following, strict=True))

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
                hint="compile with a longer --context, if the model's positions allow it",
            )
        context = Context(tokens, first)
        context.values.update(dict.fromkeys(self.program.accepted, tokens))
        for block, instances in self._steps:
            if block.sampled and not sample:
                continue
            for instance, actions in enumerate(instances):
                for instruction, action in zip(block.whole, actions, strict=True):
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
                case Scale():
                    floats.append(result.values)
                case Routing():
                    shares = np.ldexp(result.shares.astype(np.float64), -SHARE_FRAC)
                    numbers = result.experts.astype(np.float64)
                    floats.append(np.concatenate([numbers, shares], axis=1))
                case Probabilities():
                    codes, scale = result.quantized.codes, result.quantized.scale
                    floats.append(codes * scale.values[..., None])
                case _:
                    kind = self.program.buffers[name].type
                    fraction = (
                        kind.fraction if isinstance(kind, values.Fixed | values.Scores) else 0
                    )
                    floats.append(np.ldexp(result.astype(np.float64), -fraction))
        return floats

    # Binding instructions to what they use

    def _prepare(self, block: Block) -> Iterator[list[Action]]:
        readers = _readers(self.program, block)
        for instance in block.instances:
            yield [
                self._bind(one.does.bound(instance), reads)
                for one, reads in zip(block.whole, readers, strict=True)
            ]

    def _bind(self, one: Does[str], reads: Sequence[Action]) -> Action:
        """What computes an instruction instance, from what gives its operands."""
        match one:
            case Row():
                return self._embed(one)
            case Product() if one.weights in self.program.slots:
                return self._slot(one, reads)
            case Product():
                return self._matvec(one, reads)
            case ExpertMatvec():
                return self._expert_matvec(one, reads)
            case Route():
                return self._route(one, reads)
            case Weigh():
                return self._weigh(one, reads)
            case RMSNorm() | LayerNorm():
                return self._norm(one, reads)
            case Quantize():
                return self._quantize(one, reads)
            case QuantizeBlocks():
                return self._quantize_blocks(one, reads)
            case QuantizeHeads():
                return self._quantize_heads(one, reads)
            case RMSScale():
                frac = self.program.fraction(one.input)
                return lambda c: self._ops.rms_scale(reads[0](c), one.eps, frac)
            case Rotary():
                return self._rotary(one, reads)
            case Append():
                return lambda c: self.stores[one.cache].append(reads[0](c), c.first)
            case QueryKey():
                return self._query_key(one, reads)
            case OverScores():
                return self._softmax(one, reads)
            case WeightedSum():
                return self._weighted_sum(one, reads)
            case ElementwiseInstruction():
                return self._elementwise(one, reads)
            case Tap():
                return self._tap(one, reads)
            case Delay():
                return self._delay(one, reads)
            case LinearAttention():
                return self._linear_attention(one, reads)
            case Copy():
                return reads[0]
            case Sample():
                return lambda c: self._ops.argmax(reads[0](c))
            case Switch():
                # That banks are on when they are read is a matter of time.
                return lambda c: None
            case _:
                raise CompilerBug(f"the simulator cannot execute {one.opcode}")

    def _vector(self, name: str) -> Ints:
        return self._images.dense(name).astype(np.int64)

    def _addend(self, name: str, frac: int) -> Ints:
        """A vector that is added to values of `frac` fraction bits, which is its own as a rule."""
        values = self._vector(name)
        more = self.program.parameters[name].exponent - frac
        return shift_saturate(values, more) if more else values

    def _product(self, matrix: Matrix, fmt: str) -> Callable[[Quantized], Ints]:
        """The exact product of codes [S, K] with a matrix."""
        fits = matrix.group % 16 == 0 or matrix.group >= matrix.columns
        if self._reference or not fits:
            return lambda x: semantics.dot(x.codes, matrix, fmt)
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
        narrow = np.int8 if FORMATS[fmt].magnitude <= 128 else np.int32

        def product(x: Quantized) -> Ints:
            if x.blocks is not None:
                return kernels.matmul(packed, x.blocks)
            return kernels.matmul(packed, decode(x.codes, fmt).astype(narrow))

        return product

    def _embed(self, one: Row[str]) -> Action:
        parameter = self.program.parameters[one.table]
        frac, counter = self.program.fraction(one.output), self._counter

        def rows(c: Context) -> Ints:
            return c.tokens if isinstance(one, Embed) else c.positions

        if parameter.code.startswith("fixed"):
            table = self._images.dense(parameter.name)
            return lambda c: self._ops.embed(
                table[rows(c)].astype(np.int64), parameter.exponent, frac, saturations=counter
            )
        matrix = self._images.matrix(parameter.name)
        return lambda c: self._ops.embed(
            matrix.values(rows(c)), matrix.exponent, frac, saturations=counter
        )

    def _slot(self, one: Product[str], reads: Sequence[Action]) -> Action:
        """The product with A or B of whatever adapter is loaded."""
        site, half = self.program.slots[one.weights]
        fmt = self.program.value(one.input, values.Coded).format
        shift, frac = one.pre_shift, self.program.fraction(one.output)
        size, counter = site.rank if half == "a" else site.rows, self._counter
        floor = semantics.slot_floor(shift)
        multiplied, added = _operands(one, reads)

        def run(c: Context) -> Ints:
            x, residual = multiplied(c), None if added is None else added(c)
            adapter = self._adapter.get(one.weights)
            if adapter is None:
                return np.zeros((len(x.codes), size), np.int64) if residual is None else residual
            if half == "a":
                y = np.zeros((len(x.codes), size), np.int64)
                y[:, : adapter.rank] = semantics.dot(x.codes, adapter.a, fmt, floor)
                exponent = adapter.a.exponent
            else:
                codes = np.ascontiguousarray(x.codes[:, : adapter.rank])
                y, exponent = semantics.dot(codes, adapter.b, fmt, floor), adapter.b.exponent
            exponent -= floor
            return self._ops.requantize(
                y, x.scale, exponent, shift - floor, frac, residual=residual, saturations=counter
            )

        return run

    def _matvec(self, one: Product[str], reads: Sequence[Action]) -> Action:
        fmt = self.program.value(one.input, values.Coded).format
        matrix = self._images.matrix(one.weights)
        product = self._product(matrix, fmt)
        shift, frac = one.pre_shift, self.program.fraction(one.output)
        bias = None if one.bias is None else self._addend(one.bias, frac)
        counter = self._counter

        multiplied, added = _operands(one, reads)

        def run(c: Context) -> Ints:
            x = multiplied(c)
            residual = None if added is None else added(c)
            return self._ops.requantize(
                product(x),
                x.scale,
                matrix.exponent,
                shift,
                frac,
                bias,
                residual,
                counter,
            )

        return run

    def _expert_matvec(self, one: ExpertMatvec[str], reads: Sequence[Action]) -> Action:
        """The product of each token with its own expert; tokens of one expert go together."""
        fmt = self.program.value(one.input, values.Coded).format
        family = self._images.matrix(one.weights)
        experts = self.program.parameters[one.weights].experts
        products = _Experts(family, experts, lambda matrix: self._product(matrix, fmt))
        shift, frac = one.pre_shift, self.program.fraction(one.output)
        biases = None if one.bias is None else self._addend(one.bias, frac)
        number, counter = one.expert, self._counter
        multiplied = _normed(reads[0], reads[2] if one.norm is not None else None)

        def run(c: Context) -> Ints:
            x = multiplied(c)
            routing: Routing = reads[1](c)
            chosen = routing.experts[:, number]
            y = np.empty((len(chosen), family.rows // experts), np.int64)
            for expert in np.unique(chosen):
                mine = chosen == expert
                y[mine] = products.of(int(expert))(x.rows(mine))
            bias = None if biases is None else biases[chosen]
            return self._ops.requantize(
                y, x.scale, family.exponent, shift, frac, bias, saturations=counter
            )

        return run

    def _route(self, one: Route[str], reads: Sequence[Action]) -> Action:
        frac, lowest, every = self.program.fraction(one.input), one.lowest, one.over_all
        chosen = self.program.value(one.output, values.Routing).chosen
        number, self._routers = self._routers, self._routers + 1

        def run(c: Context) -> Routing:
            logits = reads[0](c)
            routing = semantics.route(logits, chosen, frac, lowest=lowest, every=every)
            given = {
                token: experts
                for (router, position), experts in self.forced.items()
                if router == number and 0 <= (token := position - c.first) < len(c.tokens)
            }
            if not given:
                return routing
            experts = routing.experts.copy()
            for token, others in given.items():
                experts[token] = others
            return semantics.route_to(logits, experts, frac, every=every)

        return run

    def _weigh(self, one: Weigh[str], reads: Sequence[Action]) -> Action:
        fractions = self.program.fraction(one.input), self.program.fraction(one.output)
        number, counter = one.expert, self._counter

        def run(c: Context) -> Ints:
            routing: Routing = reads[1](c)
            residual = reads[2](c) if len(reads) > 2 else None
            return semantics.weigh(
                reads[0](c), routing.shares[:, number], *fractions, residual, counter
            )

        return run

    def _norm(self, one: RMSNorm[str] | LayerNorm[str], reads: Sequence[Action]) -> Action:
        gamma, eps = self._vector(one.gamma), one.eps
        exponent = self.program.parameters[one.gamma].exponent
        fractions = self.program.fraction(one.input), self.program.fraction(one.output)
        counter = self._counter
        groups = one.groups if isinstance(one, RMSNorm) else 1
        beta = None
        if isinstance(one, LayerNorm) and one.beta is not None:
            beta = self._addend(one.beta, fractions[1])
        return lambda c: self._ops.norm(
            reads[0](c),
            gamma,
            exponent,
            eps,
            *fractions,
            groups,
            counter,
            centred=isinstance(one, LayerNorm),
            beta=beta,
        )

    def _quantize(self, one: Quantize[str], reads: Sequence[Action]) -> Action:
        frac = self.program.fraction(one.input)
        kind = self.program.value(one.output, values.Quantized)
        fmt, groups, counter = kind.format, kind.groups, self._counter
        if one.scale_of is None:
            return lambda c: self._ops.quantize(reads[0](c), fmt, frac, groups)
        cache = self.program.caches[one.scale_of]
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

    def _quantize_blocks(self, one: QuantizeBlocks[str], reads: Sequence[Action]) -> Action:
        frac, kind = self.program.fraction(one.input), self.program.value(one.output, values.Blocks)
        counter = self._counter
        return lambda c: self._ops.quantize_blocks(
            reads[0](c), kind.format, kind.block, frac, kind.fraction, counter, kind.wide_blocks
        )

    def _quantize_heads(self, one: QuantizeHeads[str], reads: Sequence[Action]) -> Action:
        frac = self.program.fraction(one.input)
        kind = self.program.value(one.output, values.Quantized)
        return lambda c: self._ops.quantize_heads(reads[0](c), kind.format, frac, kind.groups)

    def _rotary(self, one: Rotary[str], reads: Sequence[Action]) -> Action:
        # Indexing a memory map itself costs more than the whole operator.
        cos, sin = (np.asarray(self._images.dense(name)) for name in (one.cos, one.sin))
        heads, interleaved, counter = one.heads, one.interleaved, self._counter
        frac = self.program.parameters[one.cos].exponent
        return lambda c: self._ops.rotary(
            reads[0](c), cos[c.positions], sin[c.positions], heads, interleaved, counter, frac
        )

    def _tap(self, one: Tap[str], reads: Sequence[Action]) -> Action:
        weights, frac = self._vector(one.weights), self.program.fraction(one.output)
        bias = None if one.bias is None else self._addend(one.bias, frac)
        exponent = self.program.parameters[one.weights].exponent
        shift = self.program.fraction(one.input) + exponent - frac
        counter = self._counter

        def run(c: Context) -> Ints:
            addend = reads[1](c) if len(reads) > 1 else None
            return self._ops.tap(reads[0](c), weights, shift, bias, addend, counter)

        return run

    def _delay(self, one: Delay[str], reads: Sequence[Action]) -> Action:
        def run(c: Context) -> Ints:
            x, last = reads[0](c), self.states[one.state]
            self.states[one.state] = x[-1].copy()
            return self._ops.delay(x, last if c.first else np.zeros_like(last))

        return run

    def _linear_attention(self, one: LinearAttention[str], reads: Sequence[Action]) -> Action:
        of = dict(zip(one.reads, reads, strict=True))
        name, shift, counter = one.state, one.pre_shift, self._counter
        empty = _forgotten(self.program, name)

        def fraction(buffer: str | None) -> int:
            return 0 if buffer is None else self.program.fraction(buffer)

        fractions = (
            fraction(one.value),
            fraction(one.decay),
            fraction(one.rate),
            fraction(one.output),
        )

        def run(c: Context) -> Ints:
            state = self.matrices[name] if c.first else empty
            output, self.matrices[name] = semantics.linear_attention(
                of[one.query](c),
                of[one.key](c),
                of[one.value](c),
                None if one.decay is None else of[one.decay](c),
                None if one.rate is None else of[one.rate](c),
                state,
                fractions=fractions,
                shift=shift,
                saturations=counter,
            )
            return output

        return run

    def _query_key(self, one: QueryKey[str], reads: Sequence[Action]) -> Action:
        name, cache = one.keys, self.program.caches[one.keys]
        kind = self.program.value(one.query, values.Quantized)
        heads, width, fmt = kind.groups, kind.width, kind.format
        factor, shift, counter = one.score_scale, one.pre_shift, self._counter
        slopes = None if one.slopes is None else self._vector(one.slopes)
        after: list[tuple[Elementwise, Constants[int]]] = []
        if one.softcap is not None:
            inverse, cap, log2e = one.softcap
            parts = (
                Softcap(input=one.query, output=one.output, inverse=inverse, cap=cap),
                ScaleBy(input=one.query, output=one.output, factor=log2e),
            )
            after = [
                (part.formula, part.formula.constants((SCORE_FRAC,), SCORE_FRAC, part.constants))
                for part in parts
            ]

        def run(c: Context) -> Ints:
            q: Quantized = reads[0](c)
            codes = q.codes.reshape(len(q.codes), heads, width)
            keys, scale = self.stores[name].read(_span(c, one))
            window = _window(c, one)
            dots = self._ops.query_key(codes, keys, fmt, cache.format, window)
            scores = self._ops.score_scale(dots, q.scale, scale, factor, shift, counter, window)
            for formula, constants in after:
                scores = self._ops.elementwise(formula, (scores,), constants, counter)
            if slopes is not None:
                cached = np.arange(*_span(c, one).indices(c.first + len(c.tokens)))
                distance = c.positions[:, None] - cached
                if window is not None:
                    distance *= semantics.seen_of_last(len(c.tokens), len(cached), window)
                scores = semantics.sloped(scores, slopes, distance, counter)
            return scores

        return run

    def _softmax(self, one: OverScores[str], reads: Sequence[Action]) -> Action:
        name = one.values
        fmt = self.program.value(one.output, values.Probabilities).format
        sink = None if one.sink is None else self._vector(one.sink)

        softmax = self._ops.softmax_places if isinstance(one, SoftmaxPlaces) else self._ops.softmax

        def run(c: Context) -> Probabilities:
            span = _span(c, one)
            _, scale = self.stores[name].read(span)
            weights = softmax(reads[0](c), scale, fmt, None, sink, _window(c, one))
            return Probabilities(*weights, first=span.start)

        return run

    def _weighted_sum(self, one: WeightedSum[str], reads: Sequence[Action]) -> Action:
        name, cache = one.values, self.program.caches[one.values]
        shift, frac = one.pre_shift, self.program.fraction(one.output)
        counter = self._counter

        def run(c: Context) -> Ints:
            p: Probabilities = reads[0](c)
            cached, _ = self.stores[name].read(_span(c, one))
            sums = self._ops.weighted_sum(
                p.quantized.codes, cached, p.quantized.format, cache.format, _window(c, one)
            )
            scale = self._ops.multiply(p.quantized.scale, self._ops.reciprocal_scale(p.total))
            return self._ops.requantize(
                sums.reshape(len(c.tokens), -1), scale, 0, shift, frac, saturations=counter
            )

        return run

    def _elementwise(self, one: ElementwiseInstruction[str], reads: Sequence[Action]) -> Action:
        formula, counter, (target,) = one.formula, self._counter, one.writes
        fractions = [self.program.fraction(name) for name in one.reads]
        constants = formula.constants(fractions, self.program.fraction(target), one.constants)
        first, last = reads[0], reads[-1]
        if formula.operands == 1:
            return lambda c: self._ops.elementwise(formula, (first(c),), constants, counter)
        return lambda c: self._ops.elementwise(formula, (first(c), last(c)), constants, counter)


class _Experts:
    """Products with the matrices of a family, made when they are first wanted."""

    def __init__(
        self, family: Matrix, experts: int, make: Callable[[Matrix], Callable[[Quantized], Ints]]
    ) -> None:
        self._family, self._make = family, make
        self._rows = family.rows // experts
        self._made: dict[int, Callable[[Quantized], Ints]] = {}

    def of(self, expert: int) -> Callable[[Quantized], Ints]:
        """The product of codes [S, K] with an expert's matrix."""
        if expert not in self._made:
            rows = slice(expert * self._rows, (expert + 1) * self._rows)
            self._made[expert] = self._make(self._family.part(rows))
        return self._made[expert]


def _operands(
    one: Product[str], reads: Sequence[Action]
) -> tuple[Callable[[Context], Quantized], Action | None]:
    """What a product multiplies, with the factor of its norm, and what is added to it."""
    of = dict(zip(one.reads, reads, strict=True))
    added = None if one.residual is None else of[one.residual]
    return _normed(of[one.input], None if one.norm is None else of[one.norm]), added


def _normed(codes: Action, norm: Action | None) -> Callable[[Context], Quantized]:
    """What is multiplied, with the factor of its norm where that follows."""
    if norm is None:
        return codes
    return lambda c: semantics.with_norm(codes(c), norm(c))


def _forgotten(program: Program, name: str) -> Matrices:
    """A state of linear attention before the first token."""
    one = program.matrices[name]
    return Matrices.empty(one.heads, one.key_width, one.value_width)


def _span(context: Context, one: OverTokens[str]) -> slice:
    """Cached tokens that any of the tokens at hand sees."""
    return slice(one.first(context.first), context.first + len(context.tokens))


def _window(context: Context, one: OverTokens[str]) -> int | None:
    """What each of several tokens at hand sees of `_span` (`semantics.seen_of_last`); a token alone
    sees all of it."""
    return one.window if len(context.tokens) > 1 else None


def _readers(program: Program, block: Block) -> list[list[Action]]:
    """How each instruction gets its operands: a value by name, or a part of one."""

    def reader(name: str) -> Action:
        whole = program.whole(name)
        if whole == name:
            return lambda c: c.values[name]
        inner, outer = program.span(name), program.span(whole)
        assert inner is not None and outer is not None
        where = part_of.elements(inner, outer)
        return lambda c: c.values[whole][:, where]

    return [[reader(name) for name in one.reads] for one in block.whole]
