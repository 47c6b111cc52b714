#!/usr/bin/env python3
"""Make the embedded data set: the first 1,000 Fashion-MNIST training images of each class, as PNG in Parquet.

The IDX folder is that of Debian's package dataset-fashion-mnist (usr/share/datasets/fashion-mnist after dpkg -x).
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from idx import read_split
from PIL import Image

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IMAGES_PER_CLASS = 1_000


def encode(pixels: np.ndarray) -> bytes:
    """The smaller of the PNGs that filter choices give."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("idx", type=Path, help="folder with train-images-idx3-ubyte.gz and its labels")
    parser.add_argument("out", type=Path, help="Parquet file to write")
    options = parser.parse_args()
    images, labels = read_split(options.idx, "train")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:IMAGES_PER_CLASS] for label in range(10)]))
    rows = [{"bytes": encode(images[index]), "path": f"train/{index:05d}.png"} for index in chosen]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table({"image": rows, "label": labels[chosen].astype(np.int64)}, schema=schema)
    pq.write_table(table, options.out, compression="zstd", compression_level=19)
    print(f"{options.out}: {len(rows)} images, {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
