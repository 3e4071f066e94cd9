"""Accuracy after shrinking real networks, as a Markdown table.

    python tools/benchmarks/accuracy.py ../shared [--only mnist] [--threads 2]

SHARED holds `models/` and `data/` (see its README). Samples are unlabelled calibration data; the
accuracy is on the test files, which the solve never sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcns_onnx import Normalize, shrink

CIFAR = Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EXACT: Mapping[str, Any] = {"multiple": "1"}


@dataclass(frozen=True)
class Case:
    """One row: a model, its data, and how it is shrunk."""

    model: str
    data: str
    choices: Mapping[str, Any]
    common: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The choices as a command line would say them."""
        flags = [f"--{key.replace('_', '-')} {value}" for key, value in self.choices.items()]
        return " ".join(flags).replace("--refit False", "--no-refit").replace("--coupled False", "--no-coupled")


def cases() -> list[Case]:
    """All rows of the table."""
    found = [
        Case("mnist_lenet300_relu", "mnist", {"method": method, "width": width, **extra}, EXACT)
        for method, extra in (
            ("obs", {}),
            ("interpolative", {}),
            ("pcns", {}),
            ("pcns", {"refit": False}),
            ("pcns", {"order": "descending"}),
            ("pcns", {"order": "descending", "refit": False}),
        )
        for width in (0.5, 0.25, 0.1)
    ]
    found += [
        Case("mnist_mlp1000_tanh", "mnist", {"method": method, "width": width}, EXACT)
        for method in ("obs", "interpolative", "pcns")
        for width in (0.5, 0.1)
    ]
    images = {"samples": 1024}
    found += [
        Case("vgg16bn_cifar10", "cifar10", {"method": method, "budget": budget}, {"normalize": CIFAR, **images})
        for method in ("obs", "interpolative")
        for budget in ("macs=0.5", "macs=0.25")
    ]
    inner = {"width": 0.5, "coupled": False, "multiple": "1"}
    residual = {"normalize": IMAGENET, "samples": 512}
    found += [
        Case("resnet20_cifar10", "cifar10", {"method": "obs", **inner}, residual),
        Case("resnet20_cifar10", "cifar10", {"method": "interpolative", **inner}, residual),
        Case("resnet20_cifar10_dynamo", "cifar10", {"method": "obs", **inner}, residual),
        Case("resnet20_cifar10", "cifar10", {"method": "obs", "budget": "macs=0.7"}, residual),
        Case("resnet20_cifar10_dynamo", "cifar10", {"method": "obs", "budget": "macs=0.7"}, residual),
    ]
    return found


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--only", default="", help="rows whose model's name contains this")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print("| model | options | accuracy | after | points | MACs | params | latency |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases():
        if args.only not in case.model:
            continue
        report = shrink(
            args.shared / "models" / f"{case.model}.onnx",
            args.shared / "data" / f"{case.data}_calib.npz",
            eval=args.shared / "data" / f"{case.data}_test.npz",
            threads=args.threads,
            **case.common,
            **case.choices,
        ).report
        before, after, agreement = report.before, report.after, report.agreement
        assert agreement.score_a is not None and agreement.score_b is not None, "the test files have labels"
        print(
            f"| {case.model} | `{case.title}` | {agreement.score_a:.2f} | {agreement.score_b:.2f} "
            f"| {agreement.score_b - agreement.score_a:+.2f} | {after.macs / before.macs:.3f} "
            f"| {after.parameters / before.parameters:.3f} | {report.latency.ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
