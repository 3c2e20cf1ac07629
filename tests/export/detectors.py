"""Small detectors of every kind that is exported, and their short training on the demo's generated scenes."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from helpers import REPO, SMALL_ARCH, randomised
from mmefficientmod.codebases.building import build_quietly

WIDTH = 32  # of necks and heads
CLASSES = 6
BN = dict(type='BN')
GN = dict(type='GN', num_groups=8)
PREPROCESSOR = dict(
    type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
    pad_mask=True, pad_size_divisor=32,
)  # fmt: skip
SIGMOID = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
QUALITY = dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0)
BOXES = dict(type='GIoULoss', loss_weight=2.0)
CENTRENESS = dict(type='CrossEntropyLoss', use_sigmoid=True)
SQUARES = dict(
    type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]
)
POINTS = dict(type='DistancePointBBoxCoder')
DELTAS = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
NMS = dict(nms_pre=300, min_bbox_size=0, score_thr=0.02, nms=dict(type='nms', iou_threshold=0.6), max_per_img=40)
MAX_IOU = dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0))
ATSS = dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False)


def backbone(*indices: int) -> dict:
    return dict(type='mmefficientmod.EfficientMod', arch=SMALL_ARCH, out_indices=indices or (0, 1, 2, 3))


FPN = dict(
    type='FPN', in_channels=[16, 24, 32], out_channels=WIDTH, add_extra_convs='on_output', num_outs=5, norm_cfg=BN
)


def dense(type: str, head: dict, train_cfg: dict, neck: dict = FPN, test_cfg: dict = NMS) -> dict:
    """A detector with a dense head."""
    common = dict(num_classes=CLASSES, in_channels=WIDTH, feat_channels=WIDTH)
    if 'stacked_convs' not in head:
        common['stacked_convs'] = 2
    return dict(
        type=type,
        data_preprocessor=PREPROCESSOR,
        backbone=backbone(1, 2, 3),
        neck=neck,
        bbox_head=dict(common, **head),
        train_cfg=train_cfg,
        test_cfg=test_cfg,
    )


def proposals(count: int) -> dict:
    return dict(nms_pre=300, max_per_img=count, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)


def sampled(threshold: float, count: int, **kwargs: object) -> dict:
    assigner = dict(
        type='MaxIoUAssigner', pos_iou_thr=threshold, neg_iou_thr=threshold, min_pos_iou=0.3, ignore_iof_thr=-1
    )
    sampler = dict(type='RandomSampler', num=count, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True)
    return dict(assigner=assigner, sampler=sampler, pos_weight=-1, debug=False, **kwargs)


def extractor(size: int) -> dict:
    layer = dict(type='RoIAlign', output_size=size, sampling_ratio=0)
    return dict(
        type='SingleRoIExtractor', roi_layer=layer, out_channels=WIDTH, finest_scale=28, featmap_strides=[4, 8, 16, 32]
    )


def box_head(scale: float, agnostic: bool = True) -> dict:
    return dict(
        type='Shared2FCBBoxHead',
        in_channels=WIDTH,
        fc_out_channels=32,
        num_classes=CLASSES,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1 * scale, 0.1 * scale, 0.2 * scale, 0.2 * scale]),
        reg_class_agnostic=agnostic,
        loss_cls=dict(type='CrossEntropyLoss'),
        loss_bbox=dict(type='SmoothL1Loss'),
    )


def two_stage(with_mask: bool, agnostic: bool, stages: int = 1) -> dict:
    """Faster R-CNN or Mask R-CNN; with several stages, as a cascade."""
    heads = [box_head(scale, agnostic) for scale in (1, 0.5, 0.33)]
    roi_head = dict(type='StandardRoIHead', bbox_roi_extractor=extractor(7), bbox_head=heads[0])
    if stages > 1:
        roi_head.update(type='CascadeRoIHead', num_stages=3, stage_loss_weights=[1, 0.5, 0.25], bbox_head=heads)
    if with_mask:
        head = dict(type='FCNMaskHead', num_convs=1, in_channels=WIDTH, conv_out_channels=16, num_classes=CLASSES)
        head['loss_mask'] = dict(type='CrossEntropyLoss', use_mask=True)
        roi_head.update(mask_roi_extractor=extractor(14), mask_head=head)
    anchors = dict(type='AnchorGenerator', scales=[2.5], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])
    rpn = dict(
        type='RPNHead',
        in_channels=WIDTH,
        feat_channels=WIDTH,
        anchor_generator=anchors,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='SmoothL1Loss'),
    )
    rcnn = [sampled(threshold, 64, mask_size=28) for threshold in (0.5, 0.6, 0.7)]
    for stage in rcnn:
        stage['assigner']['match_low_quality'] = False
    rpn_cfg = sampled(0.5, 64, allowed_border=0)
    rpn_cfg['sampler']['add_gt_as_proposals'] = False
    return dict(
        type='CascadeRCNN' if stages > 1 else 'FasterRCNN',
        data_preprocessor=PREPROCESSOR,
        backbone=backbone(),
        neck=dict(type='FPN', in_channels=[8, 16, 24, 32], out_channels=WIDTH, num_outs=5, norm_cfg=BN),
        rpn_head=rpn,
        roi_head=roi_head,
        train_cfg=dict(rpn=rpn_cfg, rpn_proposal=proposals(60), rcnn=rcnn if stages > 1 else rcnn[0]),
        test_cfg=dict(
            rpn=proposals(60),
            rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=30, mask_thr_binary=0.5),
        ),
    )


def transformer(
    type: str, head: dict, costs: str, deformable: bool = True, width: int = WIDTH, **kwargs: object
) -> dict:
    """A detector with an encoder and a decoder."""
    attention = dict(embed_dims=width, num_heads=4, batch_first=True, dropout=0.0)
    ffn = dict(embed_dims=width, feedforward_channels=48, num_fcs=2, ffn_drop=0.0)
    first = 'FocalLossCost' if costs == 'focal' else 'ClassificationCost'
    match = [
        dict(type=first, weight=2.0),
        dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='IoUCost', iou_mode='giou', weight=2.0),
    ]
    neck = dict(type='ChannelMapper', in_channels=[16, 24, 32], kernel_size=1, out_channels=width, act_cfg=None)
    neck.update(norm_cfg=GN, num_outs=4)
    if not deformable:
        neck.update(in_channels=[24], num_outs=1)
    decoder = dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)
    return dict(
        type=type,
        data_preprocessor=PREPROCESSOR,
        backbone=backbone(1, 2, 3) if deformable else backbone(2),
        neck=neck,
        encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
        decoder=dict(
            num_layers=2,
            return_intermediate=True,
            layer_cfg=decoder,
            post_norm_cfg=None if deformable else dict(type='LN'),
        ),
        positional_encoding=dict(num_feats=width // 2, normalize=True, offset=-0.5 if deformable else 0),
        bbox_head=dict(num_classes=CLASSES, embed_dims=width, **head),
        train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=match)),
        test_cfg=dict(max_per_img=14),
        num_queries=16,
        **kwargs,
    )


RTMDET = dict(
    type='RTMDetSepBNHead',
    stacked_convs=1,
    anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
    bbox_coder=POINTS,
    loss_cls=QUALITY,
    loss_bbox=BOXES,
    with_objectness=False,
    exp_on_reg=True,
    share_conv=True,
    pred_kernel_size=1,
    norm_cfg=BN,
)
RTMDET_INS = dict(
    {key: value for key, value in RTMDET.items() if key not in ('exp_on_reg', 'with_objectness')},
    type='RTMDetInsSepBNHead',
    act_cfg=dict(type='SiLU', inplace=True),
    loss_mask=dict(type='DiceLoss', loss_weight=2.0, eps=5e-6, reduction='mean'),
)
PAFPN = dict(type='CSPNeXtPAFPN', in_channels=[16, 24, 32], out_channels=WIDTH, num_csp_blocks=1, norm_cfg=BN)
SOFT_LABELS = dict(
    assigner=dict(type='DynamicSoftLabelAssigner', topk=13), allowed_border=-1, pos_weight=-1, debug=False
)
DETR_LOSSES = dict(loss_bbox=dict(type='L1Loss', loss_weight=5.0), loss_iou=BOXES)
CLASS_OR_NONE = dict(type='CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0)
DINO = dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=8))
MODELS = {
    'RetinaNet': dense(
        'RetinaNet',
        dict(type='RetinaHead', anchor_generator=dict(SQUARES, ratios=[0.5, 1.0, 2.0]), bbox_coder=DELTAS),
        dict(MAX_IOU, allowed_border=-1, pos_weight=-1, debug=False),
    ),
    'FCOS': dense('FCOS', dict(type='FCOSHead', norm_cfg=GN), {}),
    'ATSS': dense(
        'ATSS',
        dict(
            type='ATSSHead', anchor_generator=SQUARES, bbox_coder=DELTAS, norm_cfg=GN, loss_cls=SIGMOID,
            loss_bbox=BOXES, loss_centerness=CENTRENESS,
        ),
        ATSS,
    ),
    'GFL': dense(
        'GFL',
        dict(
            type='GFLHead', anchor_generator=SQUARES, norm_cfg=GN, loss_cls=QUALITY, loss_bbox=BOXES, reg_max=8,
            loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        ),
        ATSS,
    ),
    'TOOD': dense(
        'TOOD',
        dict(
            type='TOODHead', anchor_type='anchor_free', anchor_generator=SQUARES, norm_cfg=GN, bbox_coder=DELTAS,
            initial_loss_cls=dict(type='FocalLoss', use_sigmoid=True, activated=True, gamma=2.0, alpha=0.25),
            loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, activated=True, beta=2.0), loss_bbox=BOXES,
        ),
        dict(
            ATSS, initial_epoch=4, initial_assigner=ATSS['assigner'], alpha=1, beta=6,
            assigner=dict(type='TaskAlignedAssigner', topk=13),
        ),
    ),
    'CenterNet (update)': dense(
        'CenterNet',
        dict(
            type='CenterNetUpdateHead', strides=[8, 16, 32, 64, 128], norm_cfg=GN, loss_bbox=BOXES,
            loss_cls=dict(type='GaussianFocalLoss', pos_weight=0.25, neg_weight=0.75),
        ),
        None,
    ),
    'RTMDet': dense('RTMDet', RTMDET, SOFT_LABELS, PAFPN, dict(NMS, nms_pre=30000)),
    'RTMDet-Ins': dense('RTMDet', RTMDET_INS, SOFT_LABELS, PAFPN, dict(NMS, nms_pre=500, mask_thr_binary=0.5)),
    'YOLOX': dense(
        'YOLOX',
        dict(type='YOLOXHead', stacked_convs=1, norm_cfg=BN),
        dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
        dict(type='YOLOXPAFPN', in_channels=[16, 24, 32], out_channels=WIDTH, num_csp_blocks=1, norm_cfg=BN),
        dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)),
    ),
    'Faster R-CNN': two_stage(with_mask=False, agnostic=True),
    'Mask R-CNN': two_stage(with_mask=True, agnostic=False),
    'Cascade R-CNN': two_stage(with_mask=False, agnostic=False, stages=3),
    'Cascade Mask R-CNN': two_stage(with_mask=True, agnostic=True, stages=3),
    'DETR': transformer(
        'DETR',
        dict(type='DETRHead', loss_cls=CLASS_OR_NONE, **DETR_LOSSES),
        'softmax',
        deformable=False,
    ),
    'Deformable DETR': transformer(
        'DeformableDETR',
        dict(type='DeformableDETRHead', loss_cls=SIGMOID, sync_cls_avg_factor=True, **DETR_LOSSES),
        'focal',
        with_box_refine=True,
        num_feature_levels=4,
    ),
    'DINO': transformer(
        'DINO',
        dict(type='DINOHead', loss_cls=SIGMOID, sync_cls_avg_factor=True, **DETR_LOSSES),
        'focal',
        width=256,  # the only one that it works with
        with_box_refine=True,
        as_two_stage=True,
        num_feature_levels=4,
        dn_cfg=DINO,
    ),
}  # fmt: skip


LOAD = dict(type='LoadImageFromFile')
RESIZE = dict(type='Resize', scale=(128, 96), keep_ratio=True)
KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')


def train(model: dict, scenes: Path, folder: Path, iterations: int = 4) -> tuple[Path, Path]:
    """A config and the checkpoint of a short training.

    It starts from random parameters that all matter, so that scores differ and detections are found.

    Args:
        model (dict): A detector or a segmentor.
        scenes (Path): The demo's data.
        folder (Path): For both files.
        iterations (int): With two images each. Defaults to 4.
    """
    segments = 'decode_head' in model
    with_mask = 'mask_head' in model.get('roi_head', {}) or 'loss_mask' in model.get('bbox_head', {})
    if segments:
        data, kind, root = 'semantic', 'seg', scenes / 'ade/ADEChallengeData2016'
        annotations = dict(type='LoadAnnotations', reduce_zero_label=True)
        pack = dict(type='PackSegInputs')
    else:
        data, kind, root = 'instance', 'det', f'{scenes}/coco/'
        annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask)
        pack = dict(type='PackDetInputs', meta_keys=KEYS)
    bases = [REPO / f'configs/_base_/default_runtime_{kind}.py', REPO / f'demo/configs/datasets/{data}.py']
    loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
    loader['dataset'] = dict(data_root=str(root), pipeline=[LOAD, annotations, RESIZE, pack])
    config, checkpoint = folder / 'config.py', folder / 'trained.pth'
    config.write_text(
        f'_base_ = {list(map(str, bases))!r}\nmodel = {model!r}\ntrain_dataloader = {loader!r}\n'
        f'test_dataloader = dict(dataset=dict(pipeline={[LOAD, RESIZE, pack]!r}))\n'
    )
    settings = Config.fromfile(config)
    scope = settings.default_scope
    torch.manual_seed(0)
    network = randomised(build_quietly(settings.model, scope)).train()
    if hasattr(network, 'level_embed'):  # which MMDetection's constructors leave as the memory was, NaN at times
        torch.nn.init.normal_(network.level_embed)
    with DefaultScope.overwrite_default_scope(scope):
        batches = Runner.build_dataloader(settings.train_dataloader, seed=0)
    optimiser = OptimWrapper(torch.optim.AdamW(network.parameters(), 1e-4))
    MessageHub.get_current_instance().update_info('epoch', 0)  # which TOOD's losses depend on
    _spread(network)
    for _, batch in zip(range(iterations), batches):
        losses = network.train_step(batch, optimiser)
        assert torch.isfinite(losses['loss'])
    torch.save(dict(state_dict=network.state_dict(), meta={}), checkpoint)
    return config, checkpoint


def _spread(network: torch.nn.Module) -> None:
    """Larger weights where results differ little at first: of queries, and of classes."""
    factors = {'query_embedding': 10, 'bbox_head.fc_cls': 8, 'decode_head.conv_seg': 30}
    factors.update({'decode_head.query_feat': 5, 'decode_head.cls_embed': 10, 'decode_head.mask_embed.4': 30})
    for name, module in network.named_modules():
        if name in factors and (name != 'query_embedding' or type(network).__name__ == 'DETR'):
            module.weight.data *= factors[name]
