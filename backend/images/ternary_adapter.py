"""Ternary matrices whose product is near that of a float adapter's.

Each weight of A and of B alone loses about half of itself in three values. But only their product
counts, and it leaves freedom: the codes of one matrix can make up for the errors of the other's,
and more rows of A (columns of B) than the float adapter has can be spent on what is left. So the
product of ``B' = diag(s) T`` and ``A' = diag(d) U`` with ternary T [N, R] and U [R, K] is fitted to
B A by alternating least squares: each column of U and each row of T by coordinate descent, the
scales in closed form. Every step lowers the error, so the result is a local optimum, and the same
for the same input.

All works on Gram matrices of R x R: B A is never formed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ROUNDS = 12
_SWEEPS = 3
"""Coordinate descents of a round, while codes still change."""
_ENOUGH = 1e-3
"""Relative gain of a round below which no other follows."""
_SEED = 8


def absmean(matrix: Floats) -> tuple[Floats, Floats]:
    """Ternary codes of the rows of a matrix, by BitNet's rule, with the best scales for them.

    Returns:
        Codes ``clip(round(w / mean|w|), -1, 1)`` [N, K], and for each row the scale with the least
        squared error [N], 0 where no code is left.
    """
    mean = np.abs(matrix).mean(1, keepdims=True) if matrix.size else np.ones((len(matrix), 1))
    ratio = np.divide(matrix, mean, out=np.zeros_like(matrix), where=mean > 0)
    digits = np.clip(np.rint(ratio), -1, 1)
    count = np.abs(digits).sum(1)
    best = np.divide((digits * matrix).sum(1), count, out=np.zeros(len(matrix)), where=count > 0)
    return digits, best


def fitted(a: Floats, b: Floats, rank: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Ternary matrices of a rank that approximate the product of two float matrices.

    Args:
        a: float [r, K].
        b: float [N, r].
        rank: R of the result, at least r.

    Returns:
        Codes of A' [R, K], its scales [R], codes of B' [N, R], its scales [N]; scales are not
        negative.
    """
    start_a, start_b = _start(a, b, rank)
    (u, d), (t, s) = absmean(start_a), absmean(start_b)
    # |B A|^2, and the error of the last round.
    whole = float(np.vdot(b.T @ b, a @ a.T))
    last = np.inf
    for _ in range(_ROUNDS):
        columns = (s[:, None] * t) * d
        u = _codes(columns.T @ columns, (columns.T @ b) @ a, u)
        d = _inner_scales(a, b, u, s[:, None] * t)
        rows = d[:, None] * u
        gram, target = rows @ rows.T, b @ (a @ rows.T)
        divided = np.divide(target, s[:, None], out=np.zeros_like(target), where=s[:, None] != 0)
        t = _codes(gram, divided.T, t.T).T
        along, length = (t * target).sum(1), ((t @ gram) * t).sum(1)
        s = np.divide(along, length, out=np.zeros(len(s)), where=length > 0)
        error = whole - float((s * along).sum())
        if error > last * (1 - _ENOUGH):
            break
        last = error
    return u * _sign(d)[:, None], np.abs(d), t * _sign(s)[:, None], np.abs(s)


def _start(a: Floats, b: Floats, rank: int) -> tuple[Floats, Floats]:
    """Float matrices [R, K] and [N, R] of the same product, with more terms where R > r."""
    if rank <= len(a):
        return a, b
    mix = np.random.Generator(np.random.PCG64(_SEED)).normal(size=(rank, len(a)))
    # Rows of one size, so that no term starts without a share.
    sizes = np.sqrt((a * a).sum(1))
    sizes = np.where(sizes > 0, sizes, 1.0)
    return mix @ (a / sizes[:, None]), (b * sizes) @ np.linalg.pinv(mix)


def _codes(gram: Floats, target: Floats, codes: Floats) -> Floats:
    """Lowers ``t' gram t - 2 t' target`` for each column t of the codes, one code after another.

    Args:
        gram: [R, R].
        target: [R, n].
        codes: ternary [R, n], where to start.
    """
    codes = codes.copy()
    for _ in range(_SWEEPS):
        changed = False
        for i, weight in enumerate(np.diag(gram)):
            if weight <= 0:
                continue
            wanted = (target[i] - gram[i] @ codes) / weight + codes[i]
            new = np.clip(np.rint(wanted), -1, 1)
            changed |= not np.array_equal(new, codes[i])
            codes[i] = new
        if not changed:
            break
    return codes


def _inner_scales(a: Floats, b: Floats, u: Floats, columns: Floats) -> Floats:
    """The scales of A' with the least squared error, [R]; `columns` are those of B', [N, R]."""
    gram = (columns.T @ columns) * (u @ u.T)
    target: Floats = (columns * (b @ (a @ u.T))).sum(0)
    return np.asarray(np.linalg.lstsq(gram, target, rcond=1e-9)[0], np.float64)


def _sign(scales: Floats) -> Floats:
    return np.where(scales < 0, -1.0, 1.0)
