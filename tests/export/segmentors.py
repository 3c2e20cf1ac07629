"""Small segmentors of the kinds that ``--list`` names, with auxiliary heads where they are usual."""

from __future__ import annotations

from detectors import BN, backbone

WIDTH = 16
CLASSES = 9
CHANNELS = [8, 16, 24, 32]
PREPROCESSOR = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=(96, 128),
    seg_pad_val=255,
)
AUXILIARY = dict(
    type='FCNHead', in_channels=24, in_index=2, channels=WIDTH, num_convs=1, num_classes=CLASSES, norm_cfg=BN
)


def segmentor(head: dict, neck: dict | None = None, auxiliary: dict | None = None) -> dict:
    """An encoder-decoder."""
    common = dict(num_classes=CLASSES)
    if head['type'] != 'Mask2FormerHead':
        common.update(channels=WIDTH, norm_cfg=BN, align_corners=False)
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(PREPROCESSOR, test_cfg=dict(size_divisor=32))
        if head['type'] == 'Mask2FormerHead'
        else PREPROCESSOR,
        backbone=backbone(),
        neck=neck,
        decode_head=dict(common, **head),
        auxiliary_head=auxiliary,
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


ALL = dict(in_channels=CHANNELS, in_index=[0, 1, 2, 3])
ATTENTION = dict(embed_dims=WIDTH, num_heads=2, dropout=0.0, batch_first=True)
FFN = dict(embed_dims=WIDTH, feedforward_channels=24, num_fcs=2, ffn_drop=0.0)
POSITIONS = dict(num_feats=WIDTH // 2, normalize=True)
MASK2FORMER = dict(
    type='Mask2FormerHead',
    in_channels=CHANNELS,
    strides=[4, 8, 16, 32],
    feat_channels=WIDTH,
    out_channels=WIDTH,
    num_queries=12,
    num_transformer_feat_level=3,
    pixel_decoder=dict(
        type='mmdet.MSDeformAttnPixelDecoder',
        num_outs=3,
        norm_cfg=dict(type='GN', num_groups=4),
        encoder=dict(
            num_layers=2, layer_cfg=dict(self_attn_cfg=dict(ATTENTION, num_levels=3, num_points=4), ffn_cfg=FFN)
        ),
        positional_encoding=POSITIONS,
    ),
    enforce_decoder_input_project=False,
    positional_encoding=POSITIONS,
    transformer_decoder=dict(
        return_intermediate=True,
        num_layers=3,
        layer_cfg=dict(self_attn_cfg=ATTENTION, cross_attn_cfg=ATTENTION, ffn_cfg=FFN),
    ),
    loss_cls=dict(type='mmdet.CrossEntropyLoss', class_weight=[1.0] * CLASSES + [0.1]),
    loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0),
    loss_dice=dict(type='mmdet.DiceLoss', use_sigmoid=True, activate=True, naive_dice=True, eps=1.0, loss_weight=5.0),
    train_cfg=dict(
        num_points=500,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type='mmdet.HungarianAssigner',
            match_costs=[
                dict(type='mmdet.ClassificationCost', weight=2.0),
                dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type='mmdet.MaskPseudoSampler'),
    ),
)
SEGMENTORS = {
    'Semantic FPN': segmentor(
        dict(type='FPNHead', in_channels=[WIDTH] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32]),
        dict(type='mmdet.FPN', in_channels=CHANNELS, out_channels=WIDTH, num_outs=4),
    ),
    'UPerNet': segmentor(dict(type='UPerHead', pool_scales=(1, 2, 3, 6), **ALL), auxiliary=AUXILIARY),
    'SegFormer': segmentor(dict(type='SegformerHead', **ALL)),
    'DeepLabV3+': segmentor(
        dict(
            type='DepthwiseSeparableASPPHead',
            in_channels=32,
            in_index=3,
            dilations=(1, 2, 3),
            c1_in_channels=8,
            c1_channels=8,
        ),
        auxiliary=AUXILIARY,
    ),
    'PSPNet': segmentor(dict(type='PSPHead', in_channels=32, in_index=3), auxiliary=AUXILIARY),
    'Mask2Former': segmentor(MASK2FORMER),
}
