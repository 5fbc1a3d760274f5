"""Images become RGB as the pipelines of transformers read them, or are refused by name."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from helpers.images import encoded, in_memory
from rgd_hf.scripts.vision.decoding import UnreadableImageError, open_image


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("L", (4, 4), 100), "PNG", (100, 100, 100)),
        (Image.new("LA", (4, 4), (100, 0)), "PNG", (100, 100, 100)),
        (Image.new("LA", (4, 4), (100, 255)), "PNG", (100, 100, 100)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG", (10, 20, 30)),
        (Image.new("RGBA", (4, 4), (9, 8, 7, 51)), "PNG", (9, 8, 7)),
        (Image.new("YCbCr", (4, 4), (100, 128, 128)), "TIFF", (100, 100, 100)),
        (Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF", (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 128 * 256, dtype=np.uint16)), "TIFF", (128, 128, 128)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.fromarray(np.full((4, 4), 128 * 256, dtype=np.uint16)), "PNG", (128, 128, 128)),
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("RGB", (4, 4), (1, 2, 3)).quantize(), "PNG", (1, 2, 3)),
    ],
    ids=(
        [
            "gray",
            "gray+clear",
            "gray+opaque",
            "clear",
            "half",
            "ycbcr",
            "lab",
            "16-bit-tiff",
            "cmyk",
            "16-bit",
            "bilevel",
            "palette",
        ]
    ),
)
@pytest.mark.filterwarnings("ignore:Some images have transparent parts")
def test_every_mode_becomes_rgb(image, kind, expected):
    opened = open_image(encoded(image, kind))
    assert opened.mode == "RGB" and opened.getpixel((0, 0)) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("dtype, mode", [(np.int32, "mode I"), (np.float32, "mode F")])
def test_pixels_without_a_known_range_are_refused_by_name(dtype, mode):
    image = Image.fromarray(np.full((4, 4), 1, dtype=dtype))
    with pytest.raises(UnreadableImageError, match=mode):
        open_image(encoded(image, "TIFF"))
    with pytest.raises(UnreadableImageError, match=mode):
        open_image(np.asarray(image))


def test_of_several_frames_the_first_is_seen():
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    for kind in ("GIF", "TIFF", "WEBP"):
        file = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], **options)
        assert open_image({"bytes": file.getvalue()}).getpixel((0, 0)) == (255, 0, 0), kind


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P transparent", "P half", "RGB", "RGBA", "CMYK"])
@pytest.mark.filterwarnings("ignore:Some images|Palette images:UserWarning")
def test_training_sees_what_a_pipeline_will_see(mode):
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    image = Image.fromarray(values, "RGBA")
    options = {"transparency": 1} if "transparent" in mode else {}
    if "half" in mode:
        options = {"transparency": bytes(range(0, 256, 4))}
    image = image.convert("RGB").quantize(64) if mode.startswith("P") else image.convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF" if mode == "CMYK" else "PNG", **options)
    seen = load_image(Image.open(file))
    assert np.array_equal(open_image({"bytes": file.getvalue()}), seen)


def test_transparent_parts_are_told_of():
    with pytest.warns(UserWarning, match="transparent parts, of which the colour beneath is seen"):
        open_image(encoded(Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG"))


def test_images_are_turned_upright():
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert open_image({"bytes": file.getvalue()}).size == (4, 8)


@pytest.mark.parametrize("cut", [0, 20, 400])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_broken_image_is_named_as_such(kind, cut):
    whole = encoded(Image.fromarray(in_memory(1).images[0]).resize((64, 64)), kind)["bytes"]
    with pytest.raises(UnreadableImageError):
        open_image({"bytes": whole[:cut]})


def test_a_missing_file_is_unreadable():
    for source in ("no/such.png", {"bytes": None, "path": None}):
        with pytest.raises(UnreadableImageError):
            open_image(source)
