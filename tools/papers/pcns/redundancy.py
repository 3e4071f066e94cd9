"""Redundancy of trained networks as the PCNS drafts measure it (3.1, section 6), as a Markdown table.

    python tools/papers/pcns/redundancy.py ../shared [--samples 512] [--threads 2] [--out tools/results/paper_pcns]

SHARED holds `models/` and `data/` (see its README). For every layer that can be narrowed: the smallest number of
eigenvectors of its outputs, centred across neurons, that reach a share of their variance, in parts of its width.
Nothing is changed. The draft's rule of thumb: a tenth of the neurons for 99.99 % is very redundant, 80 % of them for
90 % is not. Writes redundancy.md to --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from pcns_onnx import Normalize, inspect

CIFAR = Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DETECTOR = Normalize((127 / 255,) * 3, (128 / 255,) * 3)
CASES: dict[str, tuple[str, str, Normalize | None]] = {
    "LeNet-300-100 (ReLU)": ("mnist_lenet300_relu", "mnist_calib", None),
    "MLP 1000-1000 (tanh)": ("mnist_mlp1000_tanh", "mnist_calib", None),
    "VGG-16-BN": ("vgg16bn_cifar10", "cifar10_calib", CIFAR),
    "ResNet-20": ("resnet20_cifar10", "cifar10_calib", IMAGENET),
    "face detector": ("face_slim320", "photos_240x320", DETECTOR),
}
SHARES = ("0.9", "0.99", "0.999", "0.9999")


def main() -> None:
    """Inspect every model and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--samples", type=int, default=512, help="of images; MNIST's rows are all used")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "results" / "paper_pcns")
    args = parser.parse_args()
    lines = [
        "| model | layers | " + " | ".join(f"{100 * float(s):g} %" for s in SHARES) + " | share in width/10 |",
        "|" + "---|" * (3 + len(SHARES)),
    ]
    print("\n".join(lines))
    for title, (model, data, normalize) in CASES.items():
        choices: dict[str, Any] = {"threads": args.threads} | ({"normalize": normalize} if normalize else {})
        if normalize:
            choices["samples"] = args.samples
        layers = inspect(args.shared / "models" / f"{model}.onnx", args.shared / "data" / f"{data}.npz", **choices).pcns
        parts = np.array([[layer.eigenvectors[share] / layer.width for share in SHARES] for layer in layers])
        tenth = [sum(layer.eigenvalues[: max(layer.width // 10, 1)]) for layer in layers]
        cells = [f"{np.median(p):.0%} ({p.min():.0%}-{p.max():.0%})" for p in parts.T]
        lines.append(f"| {title} | {len(layers)} | " + " | ".join(cells) + f" | {np.median(tenth):.1%} |")
        print(lines[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "redundancy.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
