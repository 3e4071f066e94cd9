"""What more samples would bring: the loss on samples kept aside, against how many were learnt from.

    loss(n) = a + b n^(-1/2)

is fitted by least squares to a quarter, a half and all of the samples, each learnt from as long as the other, and says
what twice and four times as many would come to. The power is that of a mean over n draws (the usual rate of parametric
estimates, van der Vaart 1998); three points do not tell a power, and a curve that does not fall is said as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcns_onnx.evaluation.healing import CurvePoint

SHARES = (0.25, 0.5)
_FURTHER = (2, 4)


def extrapolated(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """The points, and what twice and four times the samples of the last would come to; at least 0."""
    if len(points) < 2:
        return list(points)
    counts = np.array([point.samples for point in points], dtype=np.float64)
    design = np.stack([np.ones_like(counts), counts**-0.5], axis=1)
    a, b = np.linalg.lstsq(design, np.array([point.loss for point in points]), rcond=None)[0]
    further = [points[-1].samples * times for times in _FURTHER]
    return [*points, *(CurvePoint(n, float(max(a + b * n**-0.5, 0.0)), predicted=True) for n in further)]
