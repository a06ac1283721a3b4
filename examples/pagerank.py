"""PageRank of a graph that processes share: a plan of its matrix, stepped by a crew.

The graph is read once, normalised, and shared under a name. The plan finds the fastest form of the
product on this machine; each step of the crew is one iteration. The ranks are compared with
those that SciPy computes.

    python examples/pagerank.py [graph.mtx.gz]
"""

import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse

import hugepool

GRAPH = Path(__file__).parents[1] / "tests" / "data" / "debian-depends.mtx.gz"
DAMPING, STEPS = 0.85, 50


def scipy_ranks(links):
    rank = np.full(links.shape[0], 1 / links.shape[0])
    for _ in range(STEPS):
        product = links @ rank
        rank = product + (1 - product.sum()) / len(rank)
    return rank


def main():
    with hugepool.connect() as pool:
        graph = pool.load("pagerank-graph", sys.argv[1] if sys.argv[1:] else GRAPH)
        links = graph.as_scipy()
        weights = DAMPING / np.repeat(np.diff(links.indptr), np.diff(links.indptr))
        links = scipy.sparse.csr_array((weights, links.indices, links.indptr), links.shape)
        shared = pool.put("pagerank-links", links.T.tocsr())
        plan = pool.plan_matvec(shared, uses=STEPS, workers=2)
        rank = pool.create("pagerank", count := graph.shape[0])
        product = pool.create("pagerank-product", count)
        rank.array[:] = 1 / count
        with pool.crew(workers=2) as crew:  # this process, and one worker
            step = crew.prepare(plan, rank, product)
            began = time.perf_counter()
            for _ in range(STEPS):
                step()
                rank.array[:] = product.array + (1 - product.array.sum()) / count
            took_us = (time.perf_counter() - began) / STEPS * 1e6
        np.testing.assert_allclose(rank.array, scipy_ranks(shared.as_scipy()), rtol=1e-9)
        print(f"{count} nodes, {graph.nnz} links, {took_us:.0f} us a step, form {plan.choice}")
        print("node     rank")
        for node in np.argsort(rank.array)[:-6:-1]:
            print(f"{node:<8} {rank.array[node]:.6f}")
        pool.destroy("pagerank-links")
        pool.destroy("pagerank-graph")


if __name__ == "__main__":
    main()
