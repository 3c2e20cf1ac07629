backbone = dict(
    type='mmpretrain.VAN',
    arch='tiny',
    out_indices=(0, 1, 2, 3),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://download.openmmlab.com/mmclassification/v0/van/van-tiny_8xb128_in1k_20220501-385941af.pth',
        prefix='backbone.',
    ),
)
channels = [32, 64, 160, 256]
