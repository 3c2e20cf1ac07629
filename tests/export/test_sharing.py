"""ONNX files of several sizes share their weights and compute what they computed before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.export


def write(path: Path, size: int, weight: np.ndarray) -> None:
    """A product with a large weight, and a sum with a small one of its own."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    bias = np.full(4, size, np.float32)
    tensors = [numpy_helper.from_array(weight, 'weight'), numpy_helper.from_array(bias, 'bias')]
    nodes = [helper.make_node('MatMul', ['x', 'weight'], ['y']), helper.make_node('Add', ['y', 'bias'], ['z'])]
    value = helper.make_tensor_value_info
    ends = [value('x', TensorProto.FLOAT, [size, 1024])], [value('z', TensorProto.FLOAT, [size, 4])]
    graph = helper.make_graph(nodes, 'graph', *ends, tensors)
    opsets = [helper.make_opsetid('', 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_equal_weights_are_stored_once(format, tmp_path):
    from mmefficientmod.export.formats import open_file, write_openvino
    from mmefficientmod.export.sharing import share_weights

    weight = np.random.default_rng(0).random((1024, 4), np.float32)
    paths = {size: tmp_path / f'model-{size}.onnx' for size in (2, 3)}
    inputs = {size: np.random.default_rng(size).random((size, 1024), np.float32) for size in paths}
    for size, path in paths.items():
        write(path, size, weight)
    expected = {size: open_file(path, 'onnx', ['z'])(dict(x=inputs[size]))['z'] for size, path in paths.items()}
    share_weights(list(paths.values()), tmp_path / 'weights.data')
    assert (tmp_path / 'weights.data').stat().st_size == weight.nbytes
    assert all(path.stat().st_size < 1000 for path in paths.values())
    for size, path in paths.items():
        if format == 'openvino':
            write_openvino(path, path.with_suffix('.xml'), {})
            path = path.with_suffix('.xml')
        found = open_file(path, format, ['z'])(dict(x=inputs[size]))['z']
        np.testing.assert_allclose(found, expected[size], rtol=1e-5)
