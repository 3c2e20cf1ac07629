# The generated scenes as semantic segmentation, 256 x 192. The environment variable DEMO_ROOT replaces work_dirs/demo.
_base_ = '../../../configs/_base_/datasets/ade20k.py'
data_root = '{{$DEMO_ROOT:work_dirs/demo}}/data/ade/ADEChallengeData2016'
metainfo = dict(
    classes=('sky', 'grass', 'water', 'ball', 'box', 'plaything', 'flower', 'tent', 'fan'),
    palette=[(135, 206, 250), (60, 150, 60), (0, 128, 128), (230, 25, 75), (170, 110, 40), (255, 225, 25),
             (145, 30, 180), (245, 130, 48), (0, 0, 205)])  # yapf: disable

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(256, 192), ratio_range=(1.0, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(192, 256)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 192), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),  # after the resizing: the truth keeps its size
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
