"""Writes the pictures in `pillow/`, and beside each what Pillow shows of it (`NAME.expected.png`): `python make_pictures.py`.

Made with Pillow 13. The picture is drawn here; it belongs to nobody.
"""

import io
from pathlib import Path

from PIL import Image, ImageOps

OUT = Path(__file__).parent / "pillow"
OUT.mkdir(exist_ok=True)


def drawn(width, height):
    """Smooth shades with some edges."""
    image = Image.new("RGB", (width, height))
    pixels = []
    for y in range(height):
        for x in range(width):
            disc = (x - width * 0.4) ** 2 + (y - height * 0.5) ** 2 < (height * 0.3) ** 2
            stripe = (x + 2 * y) // 12 % 2
            pixels.append((x * 255 // width, (y * 200 // height) + 40 * stripe, 220 if disc else 60))
    image.putdata(pixels)
    return image


def expect(name, image):
    image.convert("L" if image.mode == "L" else "RGB").save(OUT / f"{name}.expected.png", optimize=True)


def main():
    image = drawn(40, 24)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = OUT / f"turned_{orientation}.jpg"
        image.save(path, quality=92, subsampling=0, exif=exif)
        expect(path.name, ImageOps.exif_transpose(Image.open(path)))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned_6.png", "turned_6.webp", "turned_6.tif"):
        options = {"lossless": True} if name.endswith("webp") else {}
        image.save(OUT / name, exif=exif, **options)
        expect(name, ImageOps.exif_transpose(Image.open(OUT / name)))

    tiffs = {
        "ycbcr_jpeg.tif": (image.convert("YCbCr"), {"compression": "jpeg", "quality": 92}),
        "rgb_jpeg.tif": (image, {"compression": "jpeg", "quality": 92}),
        "palette.tif": (image.quantize(64), {}),
        "palette_lzw.tif": (image.quantize(200), {"compression": "tiff_lzw"}),
        "big.tif": (image, {"big_tiff": True}),
        "float.tif": (image.convert("L").convert("F"), {}),
        "int.tif": (image.convert("L").convert("I"), {}),
        "cmyk.jpg": (image.convert("CMYK"), {"quality": 92, "subsampling": 0}),
    }
    for name, (picture, options) in tiffs.items():
        picture.save(OUT / name, **options)
        shown = Image.open(OUT / name)
        expect(name, shown.convert("L") if shown.mode in ("F", "I") else shown)

    # Decoded at a reduced size and then brought to 36 pixels, as Pillow does it.
    large = {"large.jpg": {}, "large_420.jpg": {"subsampling": 2}, "large_progressive.jpg": {"progressive": True}}
    for name, options in large.items():
        drawn(160, 120).save(OUT / name, **{"quality": 80, "subsampling": 0, **options})
        shown = Image.open(OUT / name)
        shown.draft("RGB", (36, 27))
        expect(name, shown.resize((36, 27), Image.Resampling.BILINEAR))

    whole = io.BytesIO()
    image.save(whole, "PNG")
    (OUT / "no_end.png").write_bytes(whole.getvalue()[:-12])
    expect("no_end.png", Image.open(OUT / "no_end.png"))


main()
