"""Images as arrays: a folder of files, or encoded bytes in a table, through Pillow (an extra).

The geometry is that of most evaluation recipes (torchvision's Resize and CenterCrop): bilinear with
antialiasing, the shorter side to `resize`, then `crop` from the middle.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pcns_onnx.data.columns import LABELS, Array, Column, Part, array_column, refusing
from pcns_onnx.data.formats.preprocess import Preprocess
from pcns_onnx.errors import InputError, UnsupportedError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def image_files(folder: Path) -> list[Path]:
    """The images right in a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def image_folder(folder: Path, name: str, preprocess: Preprocess) -> Part | None:
    """All images of a folder, or those of its subfolders, whose order by name numbers the labels; None without any."""
    files = image_files(folder)
    if files:
        return Part(str(folder), {name: _column(files, str(folder), preprocess)})
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    labelled = [(path, number) for number, group in enumerate(classes) for path in image_files(group)]
    if not labelled:
        return None
    labels = np.array([number for _, number in labelled])
    images = _column([path for path, _ in labelled], str(folder), preprocess)
    return Part(str(folder), {name: images, LABELS: array_column(labels, f"{folder}: `{LABELS}`")})


def _column(files: list[Path], where: str, preprocess: Preprocess) -> Column:
    first = decoded(files[0], str(files[0]), preprocess)

    def rows(size: int) -> Iterator[Array]:
        for start in range(0, len(files), size):
            run = files[start : start + size]
            yield stacked([decoded(path, str(path), preprocess) for path in run], [str(path) for path in run], first)

    return Column(where, first.dtype, (len(files), *first.shape), rows)


def stacked(images: list[Array], names: list[str], first: Array) -> Array:
    """One array of images of one size."""
    for image, name in zip(images, names, strict=True):
        if image.shape != first.shape:
            raise InputError(
                f"{name} has shape {image.shape} and the first image {first.shape}: give --preprocess "
                '"resize=HxW", or resize and crop'
            )
    return np.stack(images) if images else np.empty((0, *first.shape), first.dtype)


def decoded(source: Path | bytes, where: str, preprocess: Preprocess) -> Array:
    """One image: (C, H, W) or, in layout NHWC, (H, W, C); uint8, or float32 where it is normalised."""
    module = _pillow()
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    with refusing(f"{where} cannot be read as an image", "repair it or take it out"), module.open(opened) as file:
        image = file.convert("L" if preprocess.channels == "L" else "RGB")
    image = _cropped(_resized(image, preprocess, module), preprocess, where)
    pixels = np.atleast_3d(np.asarray(image, np.uint8))
    pixels = np.moveaxis(pixels[..., ::-1] if preprocess.channels == "BGR" else pixels, 2, 0)
    if preprocess.normalize is not None:
        if preprocess.normalize.channels not in (1, len(pixels)):
            raise InputError(
                f"--preprocess has mean and std of {preprocess.normalize.channels} channels, images have {len(pixels)}"
            )
        pixels = preprocess.normalize(pixels[None], np.dtype(np.float32))[0]
    return np.ascontiguousarray(np.moveaxis(pixels, 0, 2) if preprocess.layout == "NHWC" else pixels)


def _resized(image: Any, preprocess: Preprocess, module: Any) -> Any:
    wanted, (width, height) = preprocess.resize, image.size
    if wanted is None:
        return image
    if isinstance(wanted, int):
        short = min(width, height)
        wanted = (int(wanted * height / short), int(wanted * width / short))
    return image.resize((wanted[1], wanted[0]), module.Resampling.BILINEAR)


def _cropped(image: Any, preprocess: Preprocess, where: str) -> Any:
    if preprocess.crop is None:
        return image
    (height, width), (wide, high) = preprocess.crop, image.size
    if height > high or width > wide:
        raise InputError(f"{where} is {high}x{wide}, less than crop={height}x{width}: give a larger resize")
    top, left = round((high - height) / 2), round((wide - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        raise UnsupportedError("images are read by Pillow: `pip install 'pcns-onnx[images]'`") from None
