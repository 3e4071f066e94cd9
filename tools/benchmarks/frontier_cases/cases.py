"""The models of the benchmark, and their data as every contender and the judge get it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

MODELS = Path(__file__).parents[3] / "models"

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INNER = ("--width", "0.5", "--no-coupled", "--multiple", "1")
"""Half of every inner width: what pcns-onnx is told; the peers are told the MACs that this leaves."""
MACS = (0.7, 0.5, 0.35)
GARG = ((1 / 1.9, 1 / 3.7), (1 / 2.9, 1 / 7.7), (1 / 6.8, 1 / 12.5))
"""MACs *and* parameters that Garg et al. leave of VGG-16; the peers are held to the MACs only."""


@dataclass(frozen=True)
class Point:
    """How small: the fraction of the MACs that may be left, and what tells pcns-onnx so."""

    macs: float
    options: tuple[str, ...] = ()

    @property
    def said(self) -> tuple[str, ...]:
        return self.options or ("--budget", f"macs={self.macs:g}")


@dataclass(frozen=True)
class Case:
    """A model with `samples` unlabelled calibration samples, and labelled test data apart from them.

    `residual`: it has residual streams, which contenders may narrow too unless `inner`.
    """

    name: str
    model: Path
    calibration: Path
    test: Path
    samples: int
    points: tuple[Point, ...]
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    residual: bool = False
    inner: bool = False


class Files(NamedTuple):
    """Data as it is given out: `input` float32 in both, `labels` in the test file only."""

    calibration: Path
    test: Path


def points(*macs: float) -> tuple[Point, ...]:
    return tuple(Point(each) for each in macs)


def both(left: tuple[float, float]) -> Point:
    """A point at which MACs and parameters are both bounded."""
    macs, parameters = (round(each, 3) for each in left)
    return Point(macs, ("--budget", f"macs={macs:g}", "--budget", f"params={parameters:g}"))


def cases(shared: Path | None) -> list[Case]:
    """The digits models, and those of SHARED where it is given."""
    found = [
        Case(name, MODELS / f"{name}.onnx", MODELS / f"{data}.npz", MODELS / f"{data}_test.npz", 1297, points(*MACS))
        for name, data in (
            ("digits_cnn", "digits_images"),
            ("digits_mlp_leaky", "digits_rows"),
            ("digits_mlp_tanh", "digits_rows"),
        )
    ]
    if shared is None:
        return found
    models, mnist, cifar = shared / "models", shared / "data" / "mnist", shared / "data" / "cifar10"
    lenet, vgg, resnet = (
        models / f"{name}.onnx" for name in ("mnist_lenet300_relu", "vgg16bn_cifar10", "resnet20_cifar10")
    )
    of_mnist, of_cifar = ((Path(f"{data}_calib.npz"), Path(f"{data}_test.npz")) for data in (mnist, cifar))
    return [
        *found,
        Case("lenet300", lenet, *of_mnist, 4000, points(0.7, 0.472, 0.229, 0.09)),
        Case("resnet20-inner", resnet, *of_cifar, 1024, (Point(0.5055, INNER),), IMAGENET, True, True),
        Case("resnet20", resnet, *of_cifar, 1024, points(*MACS), IMAGENET, True),
        Case("vgg16bn", vgg, *of_cifar, 1024, (Point(MACS[0]), *map(both, GARG)), CIFAR),
    ]


def prepared(case: Case, folder: Path) -> Files:
    """Write the case's data as float32 into `folder`, once."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{case.test.stem.removesuffix('_test')}-{case.model.stem}-{case.samples}"
    files = Files(folder / f"{stem}-calibration.npz", folder / f"{stem}-test.npz")
    if not all(file.exists() for file in files):
        pool = np.load(case.calibration)["input"]
        drawn = np.sort(np.random.default_rng(0).choice(len(pool), min(case.samples, len(pool)), replace=False))
        with np.load(case.test) as test:
            np.savez(files.test, input=_scaled(test["input"], case), labels=test["labels"])
        np.savez(files.calibration, input=_scaled(pool[drawn], case))
    return files


def _scaled(images: np.ndarray, case: Case) -> np.ndarray:
    if case.normalize is None:
        return images.astype(np.float32)
    mean, std = (np.asarray(part, np.float32).reshape(1, -1, 1, 1) for part in case.normalize)
    scaled: np.ndarray = ((images.astype(np.float32) / np.float32(255)) - mean) / std
    return scaled
