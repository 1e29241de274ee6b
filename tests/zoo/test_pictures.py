"""Every kind of picture becomes the same upright RGB; what is none says so."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from termwise.zoo.imagenet import preparation
from termwise.zoo.pictures import read

RAMP = np.arange(48 * 64 * 3, dtype=np.uint32).reshape(48, 64, 3).astype(np.uint8)
COLOURS = Image.fromarray(RAMP)


def pixels(picture):
    return np.asarray(read(picture))


def test_kinds_of_one_picture_agree(tmp_path):
    COLOURS.save(tmp_path / "p.png")
    tensor = torch.from_numpy(RAMP.copy()).permute(2, 0, 1)
    for same in (
        tmp_path / "p.png",
        str(tmp_path / "p.png"),
        COLOURS,
        RAMP,
        RAMP / 255,
        tensor,
        tensor[None],
        tensor / 255,
    ):
        assert np.array_equal(pixels(same), RAMP)
    assert np.array_equal(pixels(RAMP[..., 0]), np.repeat(RAMP[..., :1], 3, axis=2))
    assert np.array_equal(pixels(RAMP[..., :1]), pixels(torch.from_numpy(RAMP[..., 0].copy())))


def test_transparency_is_laid_over_white():
    clear = np.concatenate([RAMP, np.zeros_like(RAMP[..., :1])], axis=2)
    assert (pixels(clear) == 255).all()
    assert (pixels(Image.fromarray(clear)) == 255).all()
    solid = np.concatenate([RAMP, np.full_like(RAMP[..., :1], 255)], axis=2)
    assert np.array_equal(pixels(solid), RAMP)
    assert (pixels(Image.new("LA", (4, 4), (0, 0))) == 255).all()


def test_palettes_keep_their_colours_and_transparency(tmp_path):
    palette = COLOURS.quantize(16)
    assert palette.mode == "P"
    assert np.array_equal(pixels(palette), np.asarray(palette.convert("RGB")))
    red = Image.new("P", (4, 4))
    red.putpalette([255, 0, 0, 0, 0, 0])
    red.putpixel((0, 0), 1)
    red.save(tmp_path / "p.png", transparency=1)
    assert pixels(tmp_path / "p.png")[0, 0].tolist() == [255, 255, 255]
    assert pixels(tmp_path / "p.png")[1, 1].tolist() == [255, 0, 0]


def test_sixteen_bits_are_scaled_by_their_range(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "p.png")
    expected = [[0, 1, 128, 255]]
    for picture in (tmp_path / "p.png", values, Image.fromarray(values.astype(np.int32))):
        assert pixels(picture)[..., 0].tolist() == expected


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_colour_modes(mode, tmp_path):
    converted = COLOURS.convert(mode)
    assert np.array_equal(pixels(converted), np.asarray(converted.convert("RGB")))
    if mode == "CMYK":
        converted.save(tmp_path / "p.jpg")
        assert pixels(tmp_path / "p.jpg").shape == RAMP.shape


def test_floating_images_and_bools():
    assert pixels(Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)))[..., 0].tolist() == [[0, 255]]
    assert pixels(np.array([[False, True]]))[..., 0].tolist() == [[0, 255]]
    assert pixels(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16))[..., 0].tolist() == [[0, 255]]


def test_the_cameras_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    COLOURS.save(tmp_path / "p.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "p.png"), np.rot90(RAMP, -1))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".webp", ".tiff"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    whole, damaged = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    COLOURS.save(whole)
    damaged.write_bytes(whole.read_bytes()[: len(whole.read_bytes()) // 2])
    with pytest.raises(ValueError, match=rf"damaged\{suffix}.*cannot be read as a picture"):
        read(damaged)


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "notes.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.png.*cannot be read as a picture"):
        read(tmp_path / "notes.png")


def test_no_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        read("nowhere.png")


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((3, 8, 8)), r"\(h, w, 3\).*got \(3, 8, 8\); transpose\(1, 2, 0\) puts its channels last"),
        (torch.zeros(8, 8, 3), r"\(c, h, w\).*got \(8, 8, 3\); permute\(2, 0, 1\) puts its channels first"),
        (np.zeros((0, 8, 3)), r"no pixels.*\(0, 8, 3\)"),
        (np.zeros((8, 8, 3), dtype=np.int64), r"int64; .*astype\('uint8'\)"),
        (np.full((8, 8), 1.5), r"0\.\.1, got 1\.5\.\.1\.5"),
        (np.full((8, 8), np.nan), r"0\.\.1, got nan"),
        (torch.zeros(2, 3, 8, 8), r"\(2, 3, 8, 8\)"),
        (torch.full((3, 8, 8), -2.0), "normalised already"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (Image.new("I", (4, 4), -1), r"-1\.\.-1"),
    ],
)
def test_what_cannot_be_a_picture(picture, message):
    with pytest.raises(ValueError, match=message):
        read(picture)


@pytest.mark.parametrize("picture", [None, 3, [[0, 1]], {"a": 1}])
def test_other_types(picture):
    with pytest.raises(TypeError, match="a path, a PIL image, an array or a tensor"):
        read(picture)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 700), st.integers(1, 700))
def test_any_size_fills_the_crop(height, width):
    prepared = preparation(np.full((height, width, 3), 128, dtype=np.uint8))
    assert prepared.shape == (1, 3, 224, 224)
    assert (preparation.picture(prepared) == 128).all()


def test_a_long_strip_does_not_exhaust_memory():
    strip = np.zeros((1, 50_000), dtype=np.uint8)
    strip[:, 20_000:30_000] = 255
    assert (preparation.picture(preparation(strip)) == 255).all()


def test_preparation_is_its_definition():
    """Of a picture that needs no resizing: crop, scale, normalise, written out."""
    values = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (values[16:240, 38:262] / 255 - mean) / std
    prepared = preparation(values, dtype=torch.float64)
    assert np.abs(prepared[0].permute(1, 2, 0).numpy() - expected).max() < 1e-12
    assert np.array_equal(preparation.picture(prepared), values[16:240, 38:262])
    assert np.array_equal(preparation.picture(prepared[0].float()), values[16:240, 38:262])


def test_the_box_holds_every_picture_and_no_less():
    low, high = (torch.tensor(end).reshape(3, 1, 1) for end in preparation.box)
    for level, end in ((0, low), (255, high)):
        one_colour = preparation(np.full((40, 40, 3), level, np.uint8))
        torch.testing.assert_close(one_colour[0], end.expand(one_colour[0].shape))


def test_the_baseline_is_the_mean_colour():
    grey = preparation.picture(torch.full((1, 3, 2, 2), preparation.baseline))
    assert grey[0, 0].tolist() == [124, 116, 104]
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\)"):
        preparation.picture(torch.zeros(2, 3, 4, 4))
