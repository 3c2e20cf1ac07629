"""The form of which INT8 files are made computes the same, and runs in INT8 where it should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import randomised
from mmefficientmod.export.check import level_difference
from mmefficientmod.export.files import channels_first, write_file
from mmefficientmod.export.formats import INPUT, Job
from mmefficientmod.export.quantize import has_int8_instructions
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.channels_first import ChannelsFirst

ARCH = dict(
    embed_dims=(8, 16, 24, 32),
    depths=(2, 2, 1, 1),
    attn_depths=(0, 0, 1, 1),
    attn_ratios=(2, 2, 2, 2),
    drop_path_rate=0.0,
)


def deployed(ratio: int = 2, out_indices: tuple = (0, 1, 2, 3), cls: type = EfficientMod) -> EfficientMod:
    torch.manual_seed(0)
    model = randomised(cls(arch=dict(ARCH, ratio=ratio), out_indices=out_indices))
    model.switch_to_deploy()
    return model.eval()


@pytest.mark.parametrize(('ratio', 'out_indices'), [(1, (0, 1, 2, 3)), (3, (0, 1, 2, 3)), (2, (1, 3))])
@torch.no_grad()
def test_the_levels_are_the_same(ratio, out_indices):
    model = deployed(ratio, out_indices)
    for shape in ((2, 3, 64, 96), (1, 3, 37, 50), (1, 3, 32, 32)):
        image = torch.randn(shape)
        wanted, found = (
            {str(i): level.numpy() for i, level in enumerate(form(image))} for form in (model, ChannelsFirst(model))
        )
        assert len(found) == len(out_indices) and level_difference(wanted, found) < 1e-5


class Form(nn.Module):
    output_names = ['level']

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return self.backbone(image)[-1:]


class Own(EfficientMod):
    def forward(self, x):
        return tuple(level + 1 for level in super().forward(x))


def test_the_form_is_copied_and_a_subclass_stays_as_it_is():
    form = Form(deployed())
    found = channels_first(form)
    assert type(form.backbone) is EfficientMod and type(found.backbone) is ChannelsFirst
    assert type(channels_first(Form(deployed(cls=Own))).backbone) is Own


@pytest.mark.export
@pytest.mark.skipif(not has_int8_instructions(), reason='needs instructions for products of bytes')
def test_depth_wise_convolutions_and_products_run_in_int8(tmp_path):
    """As OpenVINO's plan of the network says."""
    openvino = pytest.importorskip('openvino')
    image = torch.rand(1, 3, 64, 96)
    job = Job(Form(deployed()), (image,), [INPUT], calibration=[image.numpy()], feeds=lambda x: {INPUT: x})
    write_file('openvino-int8', job, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'model-int8.onnx', 'model-int8.xml', 'model-int8.bin'}
    settings = {'INFERENCE_PRECISION_HINT': 'f32'}
    plan = openvino.Core().compile_model(tmp_path / 'model-int8.xml', 'CPU', settings).get_runtime_model()
    kinds = [(node.get_rt_info()['layerType'].astype(str), node) for node in plan.get_ops()]
    convolutions = [node.get_rt_info()['runtimePrecision'].astype(str) for kind, node in kinds if 'Convolution' in kind]
    assert len(convolutions) > 20 and set(convolutions) <= {'i8', 'u8'}
