"""The comparison backbones: every row builds by name, runs at any size and trains in both tasks."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope

from helpers import REPO, make_batch
from mmefficientmod.measure.complexity import measure_model
from mmefficientmod.models import EdgeViT, EfficientFormer, TimmBackbone
from mmefficientmod.zoo.published import published

pytestmark = pytest.mark.libraries

ROWS = [
    'resnet-18',
    'poolformer-s12',
    'pvt-tiny',
    'efficientformer-l1',
    'pvtv2-b1',
    'efficientformerv2-s2',
    'van-b0',
    'focalnet-t-srf',
    'repvit-m1.1',
    'repvit-m1.5',
    'fasternet-t2',
    'mobilevitv2-1.0',
    'mobilenetv2-1.0',
    'edgevit-s',
]
PATTERNS = {
    'mmdet': 'detection/mask-rcnn_{}_fpn_8xb4-1x_coco.py',
    'mmseg': 'segmentation/fpn_{}_8xb4-40k_ade20k-512x512.py',
}
STRIDES = (4, 8, 16, 32)

timm = pytest.importorskip('timm')


def load_config(codebase: str, row: str) -> Config:
    return Config.fromfile(REPO / 'configs' / PATTERNS[codebase].format(row))


def build_backbone(codebase: str, row: str) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(codebase):
        return MODELS.build(load_config(codebase, row).model.backbone)


def sides(size: tuple, stride: int) -> list[int]:
    return [-(-side // stride) for side in size]


@pytest.mark.both_stacks
@pytest.mark.parametrize('codebase', PATTERNS)
@pytest.mark.parametrize('row', ROWS)
def test_pyramid_at_the_sizes_of_both_tasks(codebase, row):
    channels = load_config(codebase, row).model.neck.in_channels
    backbone = build_backbone(codebase, row).to('meta')  # shapes alone, nothing is computed
    for size in ((512, 512), (800, 1344), (800, 1333), (480, 683)):
        maps = backbone(torch.zeros(2, 3, *size, device='meta'))
        assert [level.shape[:2] for level in maps] == [(2, dims) for dims in channels]
        assert all(level.is_contiguous() for level in maps)  # as MMCV's operators read them
        if size[1] % 32 == 0:
            assert [list(level.shape[2:]) for level in maps] == [sides(size, stride) for stride in STRIDES]


@pytest.mark.parametrize('codebase', [pytest.param('mmdet', marks=pytest.mark.ops), 'mmseg'])
@pytest.mark.parametrize('row', ROWS)
def test_row_trains(codebase, row):
    config = load_config(codebase, row)
    config.model.backbone.init_cfg = None  # its weights would must be downloaded
    if codebase == 'mmdet':
        config.model.train_cfg.rpn_proposal.max_per_img = 50
        config.model.train_cfg.rcnn.sampler.num = 16
    else:
        config.model.data_preprocessor.size = (128, 160)  # the batch is padded to it
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(codebase):
        model = revert_sync_batchnorm(MODELS.build(config.model))
        model.init_weights()
        batch = make_batch(import_module(f'{codebase}.registry').TRANSFORMS, config.train_pipeline[-1].type, True)
        losses = model.train()(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    for name, param in model.backbone.named_parameters():
        if param.requires_grad:
            assert param.grad is not None and param.grad.isfinite().all(), name


def test_poolformer_and_resnet_freeze_what_the_documentation_says():
    assert all(p.requires_grad for p in build_backbone('mmseg', 'poolformer-s12').parameters())
    frozen = [name for name, p in build_backbone('mmdet', 'resnet-18').named_parameters() if not p.requires_grad]
    assert {name.split('.')[0] for name in frozen} == {'conv1', 'bn1', 'layer1'}
    assert all(p.requires_grad for p in build_backbone('mmseg', 'resnet-18').parameters())


@pytest.mark.parametrize(
    'model_name, row',
    [
        ('efficientformer_l1', 'EfficientFormer-L1'),
        ('efficientformerv2_s2', 'EfficientFormerV2-S2'),
        ('fasternet_t2', 'FasterNet-T2'),
        ('mobilevitv2_100', 'MobileViTv2-1.0'),
        ('mobilenetv2_100', 'MobileNetV2-1.0'),
    ],
)
def test_timm_model_is_the_published_one(model_name, row):
    params = sum(p.numel() for p in timm.create_model(model_name).parameters())
    assert round(params / 1e6, 1) == published('imagenet')[row]['params']


@pytest.mark.parametrize('codebase', PATTERNS)
@pytest.mark.parametrize('row', ROWS)
def test_images_are_normalised_as_the_weights_expect(codebase, row):
    config = load_config(codebase, row).model
    expected = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    checkpoint = config.backbone.get('init_cfg', {}).get('checkpoint', '')
    if checkpoint.startswith('timm://'):
        published_with = timm.get_pretrained_cfg(checkpoint[len('timm://') :])
        assert published_with.architecture == config.backbone.model_name
        expected = dict(mean=published_with.mean, std=published_with.std)
    for key, values in expected.items():
        assert config.data_preprocessor[key] == pytest.approx([255 * value for value in values])


@pytest.mark.parametrize('arch', EdgeViT.arch_settings)
def test_edgevit_has_the_published_parameters_and_cost(arch):
    backbone = EdgeViT(arch)
    dims = backbone.out_channels[-1]
    classifier = 2 * dims + (dims + 1) * 1000  # a batch norm and a linear layer
    cost, expected = measure_model(backbone.to('meta'), (224, 224)), published('imagenet')[f'EdgeViT-{arch.upper()}']
    assert round((cost.params + classifier) / 1e6, 1) == expected['params']
    assert round(cost.macs / 1e9, 1) == expected['flops']


def test_edgevit_spreads_one_position_of_a_window_over_it():
    torch.manual_seed(0)
    block = EdgeViT('xxs').stages[0][2].attention[1].eval()  # windows of 4 x 4
    x = torch.rand(1, 9, 10, 36)
    y = block(x)
    assert y.shape == x.shape
    unread = x.clone()
    unread[:, 1:4, 1:4] += 1  # all of the first window but the row and the column of the position that stands for it
    torch.testing.assert_close(block(unread), y)
    x[:, 0, 0] += 1
    assert (block(x) - y).abs().amax(-1).min() > 0  # which every position of the map attends to


@pytest.mark.parametrize('model_name', ['efficientformer_l1', 'efficientformerv2_s2'])
def test_efficientformer_equals_timm_at_the_built_size(model_name):
    torch.manual_seed(0)
    ours, theirs = EfficientFormer(model_name).eval(), TimmBackbone(model_name).eval()
    randomise_biases(ours)
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        for mine, other in zip(ours(image), theirs(image)):
            assert torch.equal(mine, other)


@pytest.mark.parametrize('model_name', ['efficientformer_l1', 'efficientformerv2_s2'])
def test_attention_biases_follow_the_image(model_name):
    torch.manual_seed(0)
    backbone = EfficientFormer(model_name, img_size=128).eval()
    image = torch.rand(1, 3, 96, 165)
    with torch.no_grad():
        set_biases(backbone, torch.zeros_like)
        without = backbone(image)[-1]
        set_biases(backbone, lambda bias: torch.full_like(bias, 3.0))  # softmax does not see a bias common to all
        torch.testing.assert_close(backbone(image)[-1], without, rtol=1e-3, atol=1e-4)
        randomise_biases(backbone)
        assert (backbone(image)[-1] - without).abs().max() > 1e-4
    backbone.train()(image.repeat(2, 1, 1, 1))[-1].sum().backward()
    assert all(p.grad.any() for name, p in backbone.named_parameters() if name.endswith('attention_biases'))


def test_attention_biases_are_kept_for_img_size():
    for img_size, positions in ((224, {49, 196}), (512, {256, 1024})):
        backbone = EfficientFormer('efficientformerv2_s2', img_size=img_size)
        biases = [p for name, p in backbone.named_parameters() if name.endswith('attention_biases')]
        assert {bias.shape[1] for bias in biases} == positions
        assert not any(bias.any() for bias in biases)


def set_biases(backbone, value):
    with torch.no_grad():
        for name, param in backbone.named_parameters():
            if name.endswith('attention_biases'):
                param.copy_(value(param))
            elif 'ls' in name.split('.')[-2]:
                param.fill_(1.0)  # else what attention adds is scaled to nothing


def randomise_biases(backbone):
    set_biases(backbone, lambda bias: 3 * torch.randn_like(bias))


@pytest.fixture
def weights_file(tmp_path):
    """A whole classifier as timm publishes it, with random weights and biases."""
    torch.manual_seed(1)
    model = timm.create_model('efficientformerv2_s2')
    randomise_biases(model)
    path = tmp_path / 'efficientformerv2_s2.pth'
    torch.save(model.state_dict(), path)
    return str(path), model.state_dict()


def test_weights_load_from_a_file(weights_file):
    path, weights = weights_file
    for img_size in (224, 256):
        backbone = EfficientFormer(
            'efficientformerv2_s2', img_size=img_size, init_cfg=dict(type='Pretrained', checkpoint=path)
        )
        backbone.init_weights()
        for name, value in backbone.model.state_dict().items():
            expected = weights[name.replace('stem_', 'stem.').replace('stages_', 'stages.')]
            if expected.shape == value.shape:
                assert torch.equal(value, expected), name
            else:  # biases of another size start from zero
                assert img_size == 256 and name.endswith('attention_biases') and not value.any(), name


def test_missing_weights_name_the_fix(tmp_path, monkeypatch):
    backbone = TimmBackbone('mobilevitv2_100', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'none.pth')))
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        backbone.init_weights()
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    backbone.init_cfg['checkpoint'] = 'timm://mobilevitv2_100.cvnets_in1k'
    with pytest.raises(ConnectionError, match=r'cannot be downloaded: get .*init_cfg\.checkpoint=PATH') as error:
        backbone.init_weights()
    assert '\n' not in str(error.value)


def test_norm_eval_keeps_batch_norms_in_evaluation_mode():
    for norm_eval in (True, False):
        backbone = TimmBackbone('repvit_m0_9', norm_eval=norm_eval, norm_cfg=dict(type='BN')).train()
        norms = [m for m in backbone.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms and all(m.training is not norm_eval for m in norms)
        assert all(norm.training for norm in backbone.norms)  # of the maps: they come without pretrained statistics


def test_levels_are_chosen_by_stride():
    backbone = TimmBackbone('mobilevitv2_050', out_strides=(8, 32))
    assert (backbone.out_channels, backbone.out_strides) == ((128, 256), (8, 32))
    assert [level.shape for level in backbone.eval()(torch.rand(1, 3, 96, 70))] == [(1, 128, 12, 9), (1, 256, 3, 3)]


@pytest.mark.parametrize('model_name', ['repvit_m0_9', 'mobilevitv2_050', 'efficientformerv2_s0', 'focalnet_tiny_srf'])
def test_no_stage_is_built_that_no_output_needs(model_name):
    backbone = TimmBackbone(model_name, out_strides=(4, 16))
    levels = backbone.train()(torch.rand(2, 3, 224, 224))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (channels, 224 // stride, 224 // stride) for channels, stride in zip(backbone.out_channels, (4, 16))
    ]
    sum(level.square().mean() for level in levels).backward()
    assert all(param.grad is not None for param in backbone.parameters())  # as distributed training demands


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: TimmBackbone('repvit_m9'), "no model 'repvit_m9'; of that family it has: repvit_m0_9, "),
        (lambda: TimmBackbone('repvit_m0_9', out_strides=(2, 4)), 'has maps of strides'),
        (lambda: EfficientFormer('efficientformer_l1', img_size=500), 'multiple of 32, got 500'),
        (lambda: EdgeViT('m'), "unknown arch 'm': choose one of xxs, xs, s"),
    ],
)
def test_bad_arguments_name_the_fix(build, message):
    with pytest.raises(ValueError, match=message):
        build()
