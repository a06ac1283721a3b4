"""Conjugate gradients on a 27-point system (as HPCG's), its products made by a crew.

SciPy's own solver runs on the same shared matrix, without a copy, and has to find the same.

    python examples/conjugate_gradient.py [edge]
"""

import sys
import time

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

import hugepool


def system(edge):
    line = scipy.sparse.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(edge, edge))
    cube = scipy.sparse.kron(scipy.sparse.kron(line, line), line)
    return (27 * scipy.sparse.eye_array(edge**3) - cube).tocsr()


def solve(step, direction, product, b, tolerance=1e-10):
    x, residual, direction[:] = 0 * b, b.copy(), b
    square, history = b @ b, [1.0]
    while history[-1] > tolerance:
        step()
        alpha = square / (direction @ product)
        x += alpha * direction
        residual -= alpha * product
        before, square = square, residual @ residual
        direction[:] = residual + square / before * direction
        history.append((square / (b @ b)) ** 0.5)
    return x, history


def main():
    edge = int(sys.argv[1]) if sys.argv[1:] else 24
    b = np.random.default_rng(0).random(edge**3)
    with hugepool.connect() as pool:
        A = pool.put("cg-A", system(edge))
        plan = pool.plan_matvec(A, form="direct", workers=2)
        p, q = pool.create("cg-p", len(b)), pool.create("cg-q", len(b))
        with pool.crew(workers=2) as crew:
            step = crew.prepare(plan, p, q)
            began = time.perf_counter()  # a step is product = A @ direction
            x, history = solve(step, p.array, q.array, b)
            took_ms = (time.perf_counter() - began) * 1e3
        found = scipy.sparse.linalg.cg(A.as_scipy(), b, rtol=1e-10)[0]
        np.testing.assert_allclose(x, found, rtol=1e-6, atol=1e-9)
        print(f"{A.shape[0]} unknowns, {A.nnz} entries, {took_ms:.1f} ms\niteration  residual")
        for iteration in range(0, len(history), max(1, len(history) // 5)):
            print(f"{iteration:<9}  {history[iteration]:.2e}")
        pool.destroy("cg-A")


if __name__ == "__main__":
    main()
