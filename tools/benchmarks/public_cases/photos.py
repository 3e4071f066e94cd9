"""Photographs that ship with packages, cut and lit in many ways; what is calibrated on and what is tested are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.public_cases import packages

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

_SKIMAGE = "skimage/data/{}"
CALIBRATED = {
    packages.SKIMAGE: (
        "astronaut.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "ihc.png", "grass.png", "coins.png",
        "retina.jpg", "hubble_deep_field.jpg",
    ),
    packages.SKLEARN: ("china.jpg",),
    packages.FACES: ("biden.jpg", "obama2.jpg", "obama3.jpg", "obama_partial_face.jpg"),
    packages.ULTRALYTICS: ("bus.jpg",),
}  # fmt: skip
TESTED = {
    packages.SKIMAGE: ("coffee.png", "camera.png", "brick.png", "gravel.png", "moon.png", "page.png"),
    packages.SKLEARN: ("flower.jpg",),
    packages.FACES: ("obama.jpg", "obama_partial_face2.jpg"),
    packages.ULTRALYTICS: ("zidane.jpg",),
}
PEOPLE = ("astronaut.png", "biden.jpg", "obama", "bus.jpg", "zidane.jpg")
"""Beginnings of the names of pictures with people."""


@dataclass(frozen=True)
class Photos:
    """Pictures (height, width, 3) by their name, for one side of the split."""

    pictures: dict[str, Image]

    @classmethod
    def loaded(cls, cache: Path, *, tested: bool, people: bool = False) -> Photos:
        """The pictures of one side; only those with people if `people`."""
        pictures = {}
        for package, names in (TESTED if tested else CALIBRATED).items():
            for name in names:
                if not people or name.startswith(PEOPLE):
                    pictures[name] = read(package.file(cache, f"**/{name}"))
        return cls(pictures)

    def views(self, count: int, side: int, rng: np.random.Generator, least: float = 0.5) -> list[Image]:
        """`count` squares: parts of at least this share of the shorter side, mirrored, brighter, darker, noisy."""
        pictures = list(self.pictures.values())
        return [_view(pictures[n % len(pictures)], side, rng, least) for n in range(count)]


def read(path: Path) -> Image:
    """A picture in RGB."""
    from PIL import Image as Pillow

    with Pillow.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def resized(image: Image, height: int, width: int) -> Image:
    """The picture in another size."""
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BILINEAR))


def _view(picture: Image, side: int, rng: np.random.Generator, least: float) -> Image:
    height, width = picture.shape[:2]
    part = int(rng.uniform(least, 1) * min(height, width))
    top, left = int(rng.integers(0, height - part + 1)), int(rng.integers(0, width - part + 1))
    cut = resized(picture[top : top + part, left : left + part], side, side)
    cut = cut[:, ::-1] if rng.random() < 0.5 else cut
    view = cut * rng.uniform(0.6, 1.3) + rng.normal(0, rng.uniform(0, 6), cut.shape)
    return view.clip(0, 255).astype(np.uint8)


def stacked(images: Sequence[Image], scale: Callable[[Any], Any], *, bgr: bool = False) -> Floats:
    """Pictures as (N, 3, height, width) float32."""
    array = np.stack(images).transpose(0, 3, 1, 2)
    return np.asarray(scale((array[:, ::-1] if bgr else array).astype(np.float32)), dtype=np.float32)
