"""Lets ONNX files of one model at several sizes share their weights, which are then stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

LEAST_BYTES = 1024  # smaller tensors stay in their file
ALIGNMENT = 4096  # of a tensor in the file of weights, so that a runtime can map it


def share_weights(paths: Sequence[Path], data: Path) -> None:
    """Moves the weights of ONNX files into one file next to them, equal ones once.

    Args:
        paths (Sequence[Path]): The files, which are written again.
        data (Path): The file to make, in the same folder.
    """
    import onnx
    from onnx.external_data_helper import set_external_data

    offsets: dict[bytes, int] = {}
    with open(data, 'wb') as file:
        for path in paths:
            model = onnx.load(str(path))
            for tensor in model.graph.initializer:
                content = tensor.raw_data
                if len(content) < LEAST_BYTES:
                    continue
                digest = hashlib.sha256(content).digest()
                if digest not in offsets:
                    offsets[digest] = offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
                    file.seek(offset)
                    file.write(content)
                set_external_data(tensor, data.name, offsets[digest], len(content))
                tensor.ClearField('raw_data')
                tensor.data_location = onnx.TensorProto.EXTERNAL
            path.write_bytes(model.SerializeToString())
