"""What weights alone say: the HOSVD of a layer, and neurons ranked by the weights that leave them.

V (K, taps*C) of a layer is the tensor W (K, taps, C). Its HOSVD in the two channel modes, cut off at ranks
r_K and r_C, is the projection

    R = W x_K P_K x_C P_C,    P_m = U_m U_mᵀ,   U_m: leading r_m left singular vectors of W unfolded along m,

which for a matrix is its truncated SVD (r_K = r_C). The error is at most the sum of both modes' lost squared
singular values, so at most twice that of the best Tucker approximation of these ranks (De Lathauwer, De Moor
and Vandewalle 2000). The ranks are the share `ratio` of what each mode can have.

The thesis uses TensorLy, whose Tucker iterates from here. Two eigenproblems in NumPy do without that dependency, have
no random start, and are what the thesis's text says (HOSVD); for matrices there is no difference.

A neuron's size is the norm of its outgoing weights, |R_g|; the smallest go first (Molchanov et al. 2016;
Graham 2019, algorithm 2). If M neurons stay, the readers' weights have lost

    (sum over the M of |W_g - R_g|² + sum over the others of |W_g|²) / |W|²,

and nothing at full width, where a layer is left as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.ranking import Ranking
from pcns_onnx.numerics.linalg import eigh_descending

Matrix = NDArray[np.float64]


def truncated(matrix: Matrix, taps: int, ratio: float) -> Matrix:
    """R of V (K, taps*C), tap-major, float64: the channel modes at the share `ratio` in (0, 1] of their ranks."""
    whole = matrix.reshape(matrix.shape[0], taps, -1)
    modes = (0, 2) if taps > 1 else (0,) if whole.shape[0] <= whole.shape[2] else (2,)
    reduced = whole
    for mode in modes:
        unfolded = np.moveaxis(whole, mode, 0).reshape(whole.shape[mode], -1)
        full = min(unfolded.shape)
        rank = max(1, round(ratio * full))
        if rank < full:
            _, vectors = eigh_descending(unfolded @ unfolded.T)
            leading = vectors[:, :rank]
            core = np.tensordot(leading.T, np.moveaxis(reduced, mode, 0), axes=1)
            reduced = np.moveaxis(np.tensordot(leading, core, axes=1), 0, mode)
    return reduced.reshape(matrix.shape)


def by_norm(size: Matrix, whole: Matrix, missed: Matrix) -> Ranking:
    """Rank N neurons by `size` (N,) = |R_g|²; `whole` is |W_g|², `missed` |W_g - R_g|². Ties: the first stays."""
    order = np.argsort(-size, kind="stable")
    kept = np.concatenate([[0.0], np.cumsum(missed[order])])
    gone = np.concatenate([np.cumsum(whole[order][::-1])[::-1], [0.0]])
    error = (kept + gone) / max(float(whole.sum()), 1e-300)
    error[-1] = 0.0
    return Ranking(order.astype(np.int64), error)
