"""Writes the Parquet files in `encodings/`: every codec, both kinds of pages and every encoding that images and labels come in.

Made with pyarrow 26. Row n of 20 holds the picture n % 5 of `make_parquet.py` as PNG, or null for n = 5 and 11, and the
label 7n - 3, or null for n = 0 and 6.
"""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

OUT = Path(__file__).parent / "encodings"
OUT.mkdir(exist_ok=True)


def png(n):
    image = Image.new("RGB", (5, 4))
    shades = ((x * 9 + n * 31, y * 11 + n * 17, x * 3 + y * 5 + n * 57) for y in range(4) for x in range(5))
    image.putdata([tuple(value % 256 for value in shade) for shade in shades])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


ROWS = range(20)
IMAGES = [None if n in (5, 11) else png(n % 5) for n in ROWS]
LABELS = [None if n in (0, 6) else 7 * n - 3 for n in ROWS]

FILES = {
    # name: (codec, page version, encoding of images, encoding of labels, type of labels)
    "plain": ("none", "1.0", "PLAIN", "PLAIN", pa.int64()),
    "plain_v2": ("none", "2.0", "PLAIN", "DELTA_BINARY_PACKED", pa.int32()),
    "dictionary": ("snappy", "1.0", None, None, pa.int16()),
    "dictionary_v2": ("snappy", "2.0", None, None, pa.uint8()),
    "lengths": ("gzip", "1.0", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BINARY_PACKED", pa.int64()),
    "prefixes": ("zstd", "2.0", "DELTA_BYTE_ARRAY", "PLAIN", pa.float64()),
    "brotli": ("brotli", "1.0", "PLAIN", "PLAIN", pa.float32()),
    "lz4": ("lz4", "2.0", "PLAIN", "PLAIN", pa.int32()),
    "struct": ("zstd", "1.0", None, None, pa.int64()),
}

for name, (codec, version, images, labels, kind) in FILES.items():
    content = pa.array(IMAGES, pa.binary())
    columns = {"image": content, "label": pa.array(LABELS, kind)}
    if name == "struct":
        paths = pa.array(["x.png"] * len(ROWS), pa.string())
        columns["image"] = pa.StructArray.from_arrays([content, paths], ["bytes", "path"])
    options = {"use_dictionary": True}
    if images:
        options = {"use_dictionary": False, "column_encoding": {"image": images, "label": labels}}
    # Small pages, so that there are several; small groups, too.
    pq.write_table(
        pa.table(columns), OUT / f"{name}.parquet", compression=codec, data_page_version=version,
        row_group_size=12, data_page_size=300, write_batch_size=4, **options,
    )
