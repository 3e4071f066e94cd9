#!/usr/bin/env bash
# LAPACK's pivoted Cholesky does not take the first of equal pivots, because its swaps reorder them
#
# Guess: dpstrf takes the largest remaining diagonal, and the lowest index where several are equal, as textbook
#   greedy selection with argmax does.
# What happens: after each choice, the chosen row changes places with the row at the front. Among equals, 'first'
#   then means first in the swapped order. For the diagonal (1, 1, 2, 1) the order is 2, 1, 0, 3 and not 2, 0, 1, 3.
#   Both are right factorisations.
# Why it matters: who selects channels, columns or landmarks by pivoted Cholesky keeps other ones than a plain loop
#   does, when scores tie: whitened features, duplicated or one-hot channels, rounded weights. Two programs then
#   write different files from the same model. Break ties yourself if that matters.
# Source: SRC/dpstf2.f in Reference-LAPACK/lapack (the swap after MAXLOC), called by scipy.linalg.lapack.dpstrf
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 scipy==1.17.1

cat > probe.py <<'PROBE'
import numpy as np
import scipy
from scipy.linalg.lapack import dpstrf

print("numpy", np.__version__, "scipy", scipy.__version__)


def greedy(matrix):
    """Returns the pivots of the outer-product form: largest remaining diagonal, lowest index first."""
    rest, order = matrix.copy(), []
    left = list(range(len(matrix)))
    while left:
        pivot = max(left, key=lambda index: (rest[index, index], -index))
        order.append(pivot)
        left.remove(pivot)
        rest = rest - np.outer(rest[:, pivot], rest[pivot]) / rest[pivot, pivot]
    return order


for diagonal, expected in (((1.0, 1.0, 2.0, 1.0), [2, 1, 0, 3]), ((4.0, 3.0, 2.0, 1.0), [0, 1, 2, 3])):
    matrix = np.diag(diagonal)
    factor, pivots, rank, info = dpstrf(matrix, lower=1)
    order = [int(pivot) - 1 for pivot in pivots]
    lower = np.tril(factor)
    assert (rank, info) == (4, 0) and np.allclose(lower @ lower.T, matrix[np.ix_(order, order)])
    print("diagonal", diagonal, "dpstrf:", order, "greedy, first of equals:", greedy(matrix))
    assert order == expected
    assert (order == greedy(matrix)) == (len(set(diagonal)) == 4)
PROBE
venv/bin/python probe.py
