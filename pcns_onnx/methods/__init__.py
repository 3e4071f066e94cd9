"""How a group is narrowed: one row per method; CLI choices, help and README come from it."""

from __future__ import annotations

from pcns_onnx.errors import InputError
from pcns_onnx.methods import interpolative, obs
from pcns_onnx.methods.ranking import Method, Ranking, Reading, mixing

DEFAULT = "obs"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="obs",
            family="subset",
            summary="structured optimal brain surgeon: remove what the re-fitted reader misses least",
            exact="duplicate, dead, linearly dependent neurons; constant ones except before a zero-padded Conv",
            cost="one sweep of N downdates of an n x n inverse per group (n = N * taps)",
            source="Hassibi & Stork 1993, in blocks",
            rank=obs.rank,
        ),
        Method(
            name="interpolative",
            family="subset",
            summary="pivoted Cholesky of the channels' covariance, weighted by the readers",
            exact="duplicate, dead, linearly dependent neurons; constant ones except before a zero-padded Conv",
            cost="N³/3 per group",
            source="interpolative decomposition by column-pivoted QR",
            rank=interpolative.rank,
        ),
        Method(
            name="pcns",
            family="basis",
            summary="the PCNS drafts: neurons are replaced by the principal components of their outputs",
            exact="without an activation, and at full width",
            cost="one N x N eigenproblem and four runs of the model's prefix per group",
            source="Rolet, PCNS (2022)",
        ),
    )
}

CHOICES = ("auto", *METHODS)


def method_named(name: str) -> Method:
    """The method, 'auto' being the default; raises `InputError` with the choices."""
    found = METHODS.get(DEFAULT if name == "auto" else name)
    if found is None:
        raise InputError(f"unknown method '{name}': choose one of {', '.join(CHOICES)}")
    return found


__all__ = ["CHOICES", "DEFAULT", "METHODS", "Method", "Ranking", "Reading", "method_named", "mixing"]
