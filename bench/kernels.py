"""Speed of the matrix-vector kernels beside the memory's read bandwidth and onnxruntime.

    python bench/kernels.py [--shapes 3072x3072,8192x3072] [--formats "int4 g32"] [--threads 2]
                            [--seconds 0.6] [--ring 640] [--paths]

One row for each shape [N, K] and format: matrix-vector products a second, GB/s of everything a
product reads (codes and scales), GMAC/s, and the same as a share of the bandwidth that the same
threads reach by summing 64-byte vectors. "hot" repeats one matrix (it may stay in a cache),
"cold" walks copies that add up to the ring (MiB). Bandwidth, kernel and onnxruntime (MatMulNBits,
4 bit, accuracy_level 4, same block size) are measured in turns, so that other load on the machine
troubles all alike; the medians of the turns are shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from intaglio.runtime.engines import kernels
from intaglio.runtime.engines.kernel_code import Param, compile_module
from intaglio.runtime.engines.workers import POOL

SHAPES = ((3072, 3072), (8192, 3072), (3072, 8192), (128256, 3072))
FORMATS = (("int4 g32", 4, 32, 8), ("int4 g128", 4, 128, 8), ("2 bit g128", 2, 128, 1))
TURNS = 5


class Bandwidth:
    """Reads an area with all threads of the kernels' pool."""

    def __init__(self) -> None:
        from llvmlite import ir

        path = next(iter(kernels._paths().values()))
        i64, i32, i8 = (ir.IntType(n) for n in (64, 32, 8))
        lanes = ir.VectorType(i64, 8)
        pointer = ir.PointerType()
        module = ir.Module(name="read")
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer]), name="read")
        types = [pointer, i32, i32, i32]
        prefetch = ir.Function(
            module, ir.FunctionType(ir.VoidType(), types), name="llvm.prefetch.p0"
        )
        b: Any = ir.IRBuilder(function.append_basic_block("entry"))
        block_bytes, unroll = 1 << 17, 8

        def parameter(which: int) -> Any:
            place = b.gep(function.args[0], [i64(which)], source_etype=i64)
            return b.load(place, typ=i64)

        start, size = b.inttoptr(parameter(Param.CODES), pointer), parameter(Param.ROWS)
        counter = b.gep(function.args[0], [i64(Param.NEXT_ROW)], source_etype=i64)
        sink = b.gep(function.args[0], [i64(Param.Y)], source_etype=i64)
        names = ("take", "work", "body", "after", "done")
        take, work, body, after, done = (b.append_basic_block(n) for n in names)
        b.branch(take)
        b.position_at_end(take)
        first = b.atomic_rmw("add", counter, i64(block_bytes), "monotonic")
        b.cbranch(b.icmp_signed("<", first, size), work, done)
        b.position_at_end(work)
        b.branch(body)
        b.position_at_end(body)
        offset = b.phi(i64)
        offset.add_incoming(i64(0), work)
        sums = [b.phi(lanes) for _ in range(unroll)]
        news = []
        for u, total in enumerate(sums):
            total.add_incoming(ir.Constant(lanes, None), work)
            place = b.add(b.add(first, offset), i64(64 * u))
            address = b.gep(start, [place], source_etype=i8)
            # As the kernels do; plain loads read a tenth less.
            ahead = b.gep(address, [i64(kernels._PREFETCH.ahead)], source_etype=i8)
            b.call(prefetch, [ahead, i32(0), i32(3), i32(1)])
            value = b.load(address, typ=lanes, align=1)
            news.append(b.add(total, value))
        for total, new in zip(sums, news, strict=True):
            total.add_incoming(new, body)
        following = b.add(offset, i64(64 * unroll))
        offset.add_incoming(following, body)
        b.cbranch(b.icmp_signed("<", following, i64(block_bytes)), body, after)
        b.position_at_end(after)
        total = news[0]
        for new in news[1:]:
            total = b.add(total, new)
        b.store(b.extract_element(total, i32(0)), sink)
        b.branch(take)
        b.position_at_end(done)
        b.ret_void()
        self.function = compile_module(path, module)
        self.block = block_bytes

    def read(self, area: np.ndarray, threads: int) -> int:
        """Reads an area's whole blocks; returns how many bytes that were."""
        size = area.nbytes // self.block * self.block
        p = np.zeros(64, np.int64)
        p[Param.CODES], p[Param.ROWS] = area.ctypes.data, size
        POOL.run(self.function, p.ctypes.data, threads)
        return size


def onnxruntime_product(
    codes: np.ndarray, n: int, k: int, group: int, spinning: bool, threads: int
) -> Callable[[], None]:
    """A MatMulNBits session on float activations, ready to be called."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=k,
        N=n,
        bits=4,
        block_size=group,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, n])],
        [
            numpy_helper.from_array(codes.reshape(n, k // group, group // 2), "w"),
            numpy_helper.from_array(np.ones(n * (k // group), np.float32), "s"),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal((1, k), np.float32)

    def call() -> None:
        session.run(None, {"x": x})

    return call


def rate(run: Callable[[int], int], seconds: float) -> tuple[float, float]:
    """Calls a second and bytes a second of `run(i)`, which returns the bytes it read."""
    count = total = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or count < 2:
        total += run(count)
        count += 1
    elapsed = time.perf_counter() - start
    return count / elapsed, total / elapsed


def measure(
    name: str,
    shape: tuple[int, int],
    ring_bytes: int,
    seconds: float,
    bandwidth: Bandwidth,
    path: str,
    threads: int,
) -> None:
    """Measures one shape and format, hot and cold, and prints two rows."""
    n, k = shape
    _, bits, group, zero = next(f for f in FORMATS if f[0] == name)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (n, k * bits // 8), dtype=np.uint8)
    scales = rng.integers(-32768, 32768, (n, k // group), dtype=np.int16)
    copies = max(2, -(-ring_bytes // (codes.nbytes + scales.nbytes)))
    area = np.empty((copies, *codes.shape), np.uint8)
    area[...] = codes
    areas = np.repeat(scales[None], copies, 0)
    ring = [kernels.PackedMatrix(area[i], areas[i], zero, bits, group, k) for i in range(copies)]
    x = rng.integers(-128, 128, k, dtype=np.int8)
    theirs: list[Callable[[], None]] = []
    alone: Callable[[], None] | None = None
    if bits == 4:
        # onnxruntime packs the weights into memory of its own, one session a copy. Threads that
        # spin after their work (its default) would hinder the next session, so only one may.
        many = max(2, -(-ring_bytes // (n * (k // 2 + k // group * 4))))
        theirs = [onnxruntime_product(codes, n, k, group, False, threads) for _ in range(many)]
        alone = onnxruntime_product(codes, n, k, group, True, threads)
    for cold in (False, True):
        count = copies if cold else 1
        results: dict[str, list[tuple[float, float]]] = {"read": [], "kernel": [], "ort": []}

        def kernel(i: int, count: int = count) -> int:
            matrix = ring[i % count]
            kernels.matvec(matrix, x, path=path, threads=threads)
            return matrix.nbytes

        def read(i: int, count: int = count) -> int:
            return bandwidth.read(area[i % count], threads)

        def ort(i: int, cold: bool = cold) -> int:
            call = theirs[i % len(theirs)] if cold else alone
            assert call is not None
            call()
            return n * (k // 2 + k // group * 4)

        for _ in range(TURNS):
            results["read"].append(rate(read, seconds / TURNS))
            results["kernel"].append(rate(kernel, seconds / TURNS))
            if theirs:
                results["ort"].append(rate(ort, seconds / TURNS))
        calls, bytes_ = (statistics.median(r[i] for r in results["kernel"]) for i in (0, 1))
        peak = statistics.median(r[1] for r in results["read"])
        line = (
            f"{n:>6}x{k:<5} {name:<10} {path:<11} {'cold' if cold else 'hot':<4} {calls:8.0f}/s "
            f"{bytes_ / 1e9:6.1f} GB/s {calls * n * k / 1e9:6.1f} GMAC/s  "
            f"read {peak / 1e9:5.1f} GB/s ({bytes_ / peak:4.0%})"
        )
        if theirs:
            other = statistics.median(r[0] for r in results["ort"])
            line += f"  onnxruntime {other:6.0f}/s (x{calls / other:.2f})"
        print(line, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", default=",".join(f"{n}x{k}" for n, k in SHAPES))
    parser.add_argument("--formats", default=",".join(f[0] for f in FORMATS))
    parser.add_argument("--seconds", type=float, default=0.6, help="for each way and row")
    parser.add_argument("--ring", type=int, default=640, help="MiB of copies when cold")
    parser.add_argument("--threads", type=int, default=POOL.size)
    parser.add_argument("--paths", action="store_true", help="every path, not only the best")
    arguments = parser.parse_args()
    bandwidth = Bandwidth()
    print(
        f"{os.cpu_count()} CPUs, {arguments.threads} threads, path {kernels.backend_name()}, "
        f"load {os.getloadavg()[0]:.1f} before the first measurement"
    )
    names = kernels.path_names() if arguments.paths else [kernels.backend_name()]
    for text in arguments.shapes.split(","):
        rows, columns = (int(v) for v in text.split("x"))
        for name in arguments.formats.split(","):
            for path in names:
                measure(
                    name,
                    (rows, columns),
                    arguments.ring << 20,
                    arguments.seconds,
                    bandwidth,
                    path,
                    arguments.threads,
                )


if __name__ == "__main__":
    main()
