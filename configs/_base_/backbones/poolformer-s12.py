backbone = dict(
    type='mmpretrain.PoolFormer',
    arch='s12',
    out_indices=(0, 2, 4, 6),
    frozen_stages=-1,  # the default of 0 freezes the stem
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://download.openmmlab.com/mmclassification/v0/poolformer/poolformer-s12_3rdparty_32xb128_in1k_20220414-f8d83051.pth',
        prefix='backbone.',
    ),
)
channels = [64, 128, 320, 512]
