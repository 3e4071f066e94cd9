"""Writing: words of licences and names in the fonts that ship with matplotlib, on paper and on photographs."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.public_cases import packages
from benchmarks.public_cases.photos import Image, Photos

FONTS = "matplotlib/mpl-data/fonts/ttf"
LEFT_OUT = ("STIXSiz", "STIXNonUni", "cmex", "cmsy", "cmmi", "DejaVuSansDisplay", "DejaVuSerifDisplay", "LastResort")
"""Fonts without letters."""


class Writer:
    """Draws texts; fonts and words of the test are others than those of the calibration."""

    def __init__(self, cache: Path, seed: int, *, tested: bool) -> None:
        self.rng = random.Random(seed)
        self.noise = np.random.default_rng(seed)
        fonts = sorted((packages.FONTS.unpacked(cache) / FONTS).glob("*.ttf"))
        fonts = [path for path in fonts if not path.name.startswith(LEFT_OUT)]
        self.fonts = [path for n, path in enumerate(fonts) if (n % 4 == 3) == tested]
        self.words = [word for n, word in enumerate(_words(cache)) if (n % 4 == 3) == tested]
        self.photos = Photos.loaded(cache, tested=tested)

    def line(self, height: int, width: int) -> Image:
        """A line of words, (height, width, 3), from the left edge on."""
        image, draw = self._paper(height, width)
        text = self._text()
        font = self._font(int(height * self.rng.uniform(0.55, 0.8)))
        left, top, _, bottom = draw.textbbox((0, 0), text, font=font)
        place = (self.rng.randint(1, 6) - left, (height - bottom - top) // 2 + self.rng.randint(-2, 2))
        draw.text(place, text, font=font, fill=self._ink(image))
        return self._worn(image)

    def page(self, side: int) -> Image:
        """Lines of several sizes on paper or a photograph."""
        image, draw = self._paper(side, side)
        top = self.rng.randint(4, side // 6)
        while top < side - 12:
            size = self.rng.choice((12, 16, 20, 28, 40))
            draw.text((self.rng.randint(2, side // 3), top), self._text(), font=self._font(size), fill=self._ink(image))
            top += int(size * self.rng.uniform(1.2, 3))
        return self._worn(image)

    def code(self, height: int, width: int) -> Image:
        """Four to six letters and digits, each turned and moved, crossed by lines: what a reader of such codes gets."""
        from PIL import Image as Pillow

        image, draw = self._paper(height, width)
        count = self.rng.randint(4, 6)
        for place in range(count):
            font = self._font(int(height * self.rng.uniform(0.55, 0.75)))
            glyph = Pillow.new("L", (height, height))
            self._drawn(glyph).text((height // 4, 0), self.rng.choice(string.ascii_letters + string.digits), 255, font)
            turned = glyph.rotate(self.rng.uniform(-25, 25))
            where = (int((place + 0.1) * width / (count + 0.5)), self.rng.randint(-4, 6))
            image.paste(self._ink(image), where, turned)
        for _ in range(self.rng.randint(0, 4)):
            ends = [self.rng.randint(0, width if n % 2 == 0 else height) for n in range(4)]
            draw.line(ends, fill=self._ink(image), width=1)
        return self._worn(image)

    def _paper(self, height: int, width: int) -> tuple[Any, Any]:
        from PIL import Image as Pillow

        if self.rng.random() < 0.3:
            side = max(height, width)
            view = self.photos.views(1, side, self.noise)[0][:height, :width]
            image = Pillow.fromarray((255 - (255 - view.astype(np.float32)) * 0.4).astype(np.uint8))
        else:
            image = Pillow.new("RGB", (width, height), tuple(self.rng.randint(190, 255) for _ in range(3)))
        return image, self._drawn(image)

    def _drawn(self, image: Any) -> Any:
        from PIL import ImageDraw

        return ImageDraw.Draw(image)

    def _font(self, size: int) -> Any:
        from PIL import ImageFont

        return ImageFont.truetype(str(self.rng.choice(self.fonts)), size)

    def _ink(self, image: Any) -> tuple[int, ...]:
        return tuple(self.rng.randint(0, 110) for _ in range(3))

    def _text(self) -> str:
        if self.rng.random() < 0.25:
            return "".join(self.rng.choice(string.digits + "-./:") for _ in range(self.rng.randint(5, 14)))
        start = self.rng.randrange(len(self.words) - 5)
        return " ".join(self.words[start : start + self.rng.randint(1, 4)])

    def _worn(self, image: Any) -> Image:
        clean = np.asarray(image)
        array = clean * self.rng.uniform(0.75, 1.05) + self.noise.normal(0, self.rng.uniform(0, 8), clean.shape)
        return array.clip(0, 255).astype(np.uint8)


def _words(cache: Path) -> list[str]:
    text = packages.SKIMAGE.file(cache, "*.dist-info/**/LICENSE.txt").read_text(encoding="utf-8", errors="replace")
    return [word for word in text.split() if 1 < len(word) < 15]


def upside_down(image: Image) -> Image:
    """Turned by half a circle."""
    return image[::-1, ::-1]


def grey(images: list[Image]) -> NDArray[np.float32]:
    """(N, 1, height, width), from 0 to 255."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.asarray((np.stack(images).astype(np.float32) @ weights)[:, None], dtype=np.float32)
