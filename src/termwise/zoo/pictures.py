"""From a picture of any kind to what an image model takes, and back to what the model saw.

    short side to `resize` -> centre crop of `crop` -> (value / 255 - mean) / std

Resizing, cropping and rounding follow what the checkpoints were trained with, to the pixel.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from torch import Tensor

from .errors import no_file

__all__ = ["PicturePreparation", "read"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000", "ICO", "TGA")
"""Of Pillow, what is read. EPS is not: Pillow hands it to Ghostscript, which runs programs."""

# A strip longer than this is cut around its middle before it is enlarged: the crop does not see the rest.
LONGEST = 8


@dataclass(frozen=True)
class PicturePreparation:
    """How a model wants its pictures.

    Args:
        resize: length of the short side after resizing, pixels.
        crop: side of the square cut from the centre, pixels.
        mean, std: per channel (R, G, B), on a scale of 0..1.
        filter: resampling filter.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    filter: Literal["bilinear", "bicubic"] = "bilinear"

    baseline: float = 0.0
    """What stands in for a deleted pixel: the mean of each channel, which is 0 once normalised."""

    @property
    def box(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Smallest and largest value of a prepared pixel per channel: black and white, normalised.

        Example:
            >>> PicturePreparation(256, 224, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.5)).box
            ((-2.0, -2.0, -1.0), (2.0, 2.0, 1.0))
        """
        low, high = (tuple((level - mean) / std for mean, std in zip(self.mean, self.std, strict=True)) for level in (0.0, 1.0))
        return low, high

    def __call__(
        self, picture: Any, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "1 3 crop crop"]:
        """One picture as a batch of 1.

        Args:
            picture: whatever `read` takes.
            dtype: of the result.
            device: of the result.

        Returns:
            The normalised crop. Pictures smaller than the crop are enlarged.

        Raises:
            ValueError, TypeError: as `read`.
        """
        picture = read(picture)
        width, height = picture.size
        reach = LONGEST * min(width, height)
        if max(width, height) > reach:
            picture = _centre(picture, min(width, reach), min(height, reach))
            width, height = picture.size
        scale = self.resize / min(width, height)
        # the longer side is rounded down, as the training pipelines of these checkpoints did
        size = tuple(self.resize if side == min(width, height) else int(side * scale) for side in (width, height))
        resampling = PIL.Image.Resampling[self.filter.upper()]
        crop = _centre(picture.resize(size, resampling), self.crop, self.crop)
        values = _pixels(crop).to(torch.float64).permute(2, 0, 1) / 255
        return self._normalised(values)[None].to(dtype=dtype, device=device)

    def picture(self, prepared: Float[Tensor, "*batch 3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
        """What the model saw: the prepared tensor (alone, or in a batch of 1) as pixels 0..255."""
        if prepared.ndim == 4 and len(prepared) == 1:
            prepared = prepared[0]
        if prepared.ndim != 3 or len(prepared) != 3:
            raise ValueError(f"one picture of shape (1, 3, h, w) or (3, h, w) expected, got {tuple(prepared.shape)}")
        mean, std = self._columns(prepared.device)
        values = (prepared.detach().to(torch.float64) * std + mean) * 255
        return values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()

    def _normalised(self, values: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        mean, std = self._columns(values.device)
        return (values - mean) / std

    def _columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(c, dtype=torch.float64, device=device)[:, None, None] for c in (self.mean, self.std))
        return mean, std


def read(picture: Any) -> Image:
    """Any picture as an upright 8-bit RGB image.

    Args:
        picture: a path, or the bytes of a file; a PIL image; an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4); or a tensor
            (h, w) or (c, h, w), perhaps in a batch of 1. Numbers are uint8, uint16, bool, or floating within 0..1.

    Returns:
        Transparency is laid over white; palettes, grey and CMYK are converted; 16 bits are scaled by their full range
        (65535 is white), not by what occurs; the camera's orientation is applied; of several frames the first is taken.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no picture or is damaged (named), the array has another shape or range, or no pixel.
        TypeError: none of the kinds above.

    Example:
        >>> import torch
        >>> read(torch.zeros(3, 4, 6)).size  # PIL says (width, height)
        (6, 4)
    """
    if isinstance(picture, (str, os.PathLike)):
        if not Path(picture).is_file():
            raise no_file("picture", Path(picture))
        return _open(Path(picture), repr(str(picture)))
    if isinstance(picture, bytes):
        return _open(io.BytesIO(picture), f"a file of {len(picture)} bytes")
    if isinstance(picture, Image):
        return _rgb(picture, "the image")
    if isinstance(picture, Tensor):
        picture = _channels_last(picture)
    if not hasattr(picture, "__array_interface__"):
        raise TypeError(f"a picture must be bytes, a path, a PIL image, an array or a tensor, got {type(picture).__name__}")
    return _rgb(PIL.Image.fromarray(_eight_bit(picture)), "the array")


def _open(source: Path | io.BytesIO, name: str) -> Image:
    PIL.Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(source, formats=[kind for kind in FORMATS if kind in PIL.Image.OPEN]) as opened:
                opened.load()
                upright = PIL.ImageOps.exif_transpose(opened)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files, depending on the format
        raise ValueError(f"{name} cannot be read as a picture ({', '.join(FORMATS)}): {error}") from error
    return _rgb(upright, name)


def _rgb(picture: Image, name: str) -> Image:
    if min(picture.size) == 0:
        raise ValueError(f"{name} has no pixels: its size is {picture.size}")
    picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits in one channel
        values = np.asarray(picture)
        values = values if picture.mode == "F" else _sixteen_bit(values, name)
        picture = PIL.Image.fromarray(_eight_bit(values))
    try:
        if picture.has_transparency_data:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "palette transparency needs RGBA", which it is about to get
                picture = picture.convert("RGBA")
            picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} has colour mode {picture.mode}, which has no way to RGB: convert it first") from error


def _sixteen_bit(values: np.ndarray, name: str) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name} has values {values.min()}..{values.max()}; integers must lie in 0..65535")
    return values.astype("uint16")


def _eight_bit(values: Any) -> UInt8[np.ndarray, "h w *c"]:
    values = np.asarray(values)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 and (values.ndim != 3 or values.shape[2] not in (3, 4)):
        turn = "; transpose(1, 2, 0) puts its channels last" if values.ndim == 3 and values.shape[0] in (1, 3, 4) else ""
        raise ValueError(f"a picture has shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), got {values.shape}{turn}")
    if values.size == 0:
        raise ValueError(f"the array has no pixels: its shape is {values.shape}")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return np.round(values / 257.0).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"a picture's numbers are uint8, uint16, bool or floating in 0..1, got {values.dtype}; where they lie in "
            "0..255, give them as astype('uint8')"
        )
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"a floating picture must lie in 0..1, got {values.min():.3g}..{values.max():.3g}: divide it by its range; "
            f"a tensor that is normalised already goes to the model as it is"
        )
    return np.round(values.astype(np.float64) * 255).astype(np.uint8)


def _channels_last(picture: Tensor) -> np.ndarray:
    if picture.ndim == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.ndim == 3 and picture.shape[0] in (1, 3, 4):
        picture = picture.permute(1, 2, 0)
    elif picture.ndim != 2:
        shape = tuple(picture.shape)
        turn = "; permute(2, 0, 1) puts its channels first" if picture.ndim == 3 and shape[2] in (1, 3, 4) else ""
        raise ValueError(f"a picture tensor has shape (c, h, w) with c of 1, 3 or 4, or (h, w), got {shape}{turn}")
    if picture.is_meta:
        raise ValueError("a picture on the meta device has no pixels: give one that has values")
    picture = picture.detach().cpu()
    return (picture.float() if picture.dtype == torch.bfloat16 else picture).numpy()


def _pixels(picture: Image) -> UInt8[Tensor, "h w 3"]:
    return torch.from_numpy(np.array(picture))


def _centre(picture: Image, width: int, height: int) -> Image:
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))
