"""Train the small reference networks of `models/` on scikit-learn's bundled digits and export them to ONNX.

Nothing is downloaded: the 1797 images of 8x8 pixels come with scikit-learn. A run takes less than a
minute on one CPU core; the same seed and the same versions give the same files again.

    pip install torch onnx onnxruntime scikit-learn
    python tools/train_reference_models.py [--out models] [--seed 0]

Written are two MLPs and a CNN, all far wider than digits need, and the samples to shrink and to test
them with: `.npz` files whose array `input` fits the models' input of that name, with `labels` beside it.
"""

from __future__ import annotations

import argparse
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

TEST_ROWS = 500
OPSET = 17
BATCH = 64


class Samples(NamedTuple):
    """What a network reads, one sample per row, and the digits it should see in them."""

    input: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def as_rows(self) -> Samples:
        return Samples(self.input.reshape(len(self.input), -1), self.labels)


class Recipe(NamedTuple):
    """A network, and how it is trained: on `rows` of 64 pixels or on `images` of 1x8x8."""

    build: Callable[[], nn.Module]
    reads: str
    epochs: int


def mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    """64-256-128-10."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(64, 256),
            act1=activation(),
            fc2=nn.Linear(256, 128),
            act2=activation(),
            fc3=nn.Linear(128, 10),
        )
    )


def cnn() -> nn.Module:
    """Four Conv-BatchNorm-ReLU blocks of 32, 64, 64 and 128 channels, pooled to 2x2 for the last layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 1
    for block, width in enumerate((32, 64, 64, 128), start=1):
        # Without a bias: the BatchNorm behind it has its own.
        layers[f"conv{block}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers[f"bn{block}"] = nn.BatchNorm2d(width)
        layers[f"relu{block}"] = nn.ReLU()
        if block == 2:
            layers["maxpool"] = nn.MaxPool2d(2)
        channels = width
    layers.update(avgpool=nn.AvgPool2d(2), flatten=nn.Flatten(), fc=nn.Linear(4 * channels, 10))
    return nn.Sequential(layers)


RECIPES = {
    "digits_mlp_leaky": Recipe(lambda: mlp(lambda: nn.LeakyReLU(0.1)), "rows", epochs=80),
    "digits_mlp_tanh": Recipe(lambda: mlp(nn.Tanh), "rows", epochs=80),
    "digits_cnn": Recipe(cnn, "images", epochs=25),
}


def digits(seed: int) -> tuple[Samples, Samples]:
    """The bundled digits as images, split into train and test with every class in proportion."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int64), test_size=TEST_ROWS, stratify=labels, random_state=seed
    )
    return Samples(train_x, train_y), Samples(test_x, test_y)


def augmented(images: Tensor) -> Tensor:
    """Each image under a small affine map of its own, with noise on every pixel."""
    warp = torch.eye(2, 3) + 0.1 * torch.randn(len(images), 2, 3)
    grid = F.affine_grid(warp, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False) + 0.05 * torch.randn_like(images)


def epoch(train: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, augmented batches. The incomplete last one is left for another epoch's shuffle."""
    images, labels = torch.from_numpy(train.input), torch.from_numpy(train.labels)
    order = torch.randperm(len(images))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        yield augmented(images[chosen]), labels[chosen]


def trained(recipe: Recipe, train: Samples, seed: int) -> nn.Module:
    # Seeded per network, so that one does not depend on which were trained before it.
    torch.manual_seed(seed)
    net = recipe.build().train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs)
    for _ in range(recipe.epochs):
        for images, labels in epoch(train):
            optimiser.zero_grad()
            logits = net(images.flatten(1) if recipe.reads == "rows" else images)
            torch.autograd.backward(F.cross_entropy(logits, labels))
            optimiser.step()
        schedule.step()
    return net.eval()


def export(net: nn.Module, example: Tensor, path: Path) -> None:
    """Write the network with a dynamic batch axis, and with every BatchNormalization as a node of its own."""
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but the newer one folds BatchNormalization into Conv; this
        # one does so only along with constants.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            net,
            (example,),
            path,
            dynamo=False,
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        )
    onnx.checker.check_model(path, full_check=True)


def accuracy_in_onnxruntime(path: Path, net: nn.Module, test: Samples) -> float:
    """Share of digits the file gets right, provided that its logits are those of the network in torch."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": test.input})
    with torch.inference_mode():
        expected = net(torch.from_numpy(test.input)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    return float(np.mean(logits.argmax(axis=1) == test.labels))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export the reference models on digits.")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    args.out.mkdir(parents=True, exist_ok=True)

    train, test = digits(args.seed)
    inputs = {"rows": (train.as_rows(), test.as_rows()), "images": (train, test)}
    for kind, (for_training, for_testing) in inputs.items():
        np.savez_compressed(args.out / f"digits_{kind}.npz", **for_training._asdict())
        np.savez_compressed(args.out / f"digits_{kind}_test.npz", **for_testing._asdict())

    print(f"{'file':<24}{'parameters':>12}{'test accuracy':>16}")
    for name, recipe in RECIPES.items():
        net = trained(recipe, train, args.seed)
        _, unseen = inputs[recipe.reads]
        path = args.out / f"{name}.onnx"
        export(net, torch.from_numpy(unseen.input[:2]), path)
        accuracy = accuracy_in_onnxruntime(path, net, unseen)
        parameters = sum(weight.numel() for weight in net.parameters())
        print(f"{path.name:<24}{parameters:>12,}{accuracy:>16.2%}")


if __name__ == "__main__":
    main()
