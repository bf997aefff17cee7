#!/usr/bin/env python3
"""Makes the Parquet files beside this script, with the libraries that users write such files with.

Needs datasets, pyarrow, numpy and Pillow. Each file holds the same seven pictures as PNG, and the labels 0, 1, 2, 0, ...

hugging_face: what `Dataset.to_parquet` of Hugging Face's library writes, three rows a row group.
large: large_binary and large_string, bytes and labels dictionary-encoded, zstd, a column `photo` said to be images.
named: labels as a dictionary of strings, as pandas writes categories; view types.
plain: binary without a struct, boolean labels, gzip.
"""
import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

N, NAMES = 7, ["ant", "bee", "cat"]


def picture(n):
    y, x = np.mgrid[:4, :5]
    return Image.fromarray(np.stack([x * 9 + n * 31, y * 11 + n * 17, x * 3 + y * 5 + n * 57], -1).astype(np.uint8))


def png(n):
    file = io.BytesIO()
    picture(n).save(file, "PNG")
    return file.getvalue()


def images(binary, string):
    kind = pa.struct([("bytes", binary), ("path", string)])
    return pa.array([dict(bytes=png(n), path=None) for n in range(N)], kind)


labels = [n % 3 for n in range(N)]
features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
dataset = datasets.Dataset.from_dict(dict(image=[picture(n) for n in range(N)], label=labels), features)
dataset.to_parquet("hugging_face.parquet", batch_size=3)

large = pa.table(dict(photo=images(pa.large_binary(), pa.large_string()), kind=pa.array(labels, pa.int8())))
said = datasets.Features(photo=datasets.Image(), kind=datasets.ClassLabel(names=NAMES)).arrow_schema.metadata
pq.write_table(large.replace_schema_metadata(said), "large.parquet", compression="zstd", row_group_size=4)

named = pa.array([NAMES[label] for label in labels]).dictionary_encode()
views = images(pa.binary_view(), pa.string_view())
pq.write_table(pa.table(dict(image=views, label=named)), "named.parquet", compression="snappy")

plain = pa.table(dict(image=[png(n) for n in range(N)], label=[label > 0 for label in labels]))
pq.write_table(plain, "plain.parquet", compression="gzip")
