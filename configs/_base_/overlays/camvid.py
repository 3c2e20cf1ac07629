# CamVid semantic segmentation (Brostow et al.), 480 x 360, 11 classes, as an overlay of the ADE20K configs. The layout
# is images/{train,val,test}/NAME.jpg and annotations/{train,val,test}/NAME.png, labels 0 to 10, 255 = void. The
# environment variable CAMVID_ROOT replaces data/camvid.
data_root = '{{$CAMVID_ROOT:data/camvid}}'
metainfo = dict(
    classes=('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign symbol', 'fence', 'car', 'pedestrian',
             'bicyclist'),
    palette=[(128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
             (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)])  # yapf: disable

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(1.0, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(360, 360), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(480, 360), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    dict(type='LoadAnnotations', reduce_zero_label=False),  # after the resizing: the truth keeps its size
    dict(type='PackSegInputs'),
]
dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    reduce_zero_label=False,
    img_suffix='.jpg',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'), pipeline=train_pipeline, **dataset
    )
)
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'), pipeline=test_pipeline, **dataset
    )
)
test_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'), pipeline=test_pipeline, **dataset
    )
)
del dataset
model = dict(decode_head=dict(num_classes=11))
