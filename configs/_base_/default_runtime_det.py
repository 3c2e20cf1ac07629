# What every detection config shares: logging, checkpoints, visualisation.
default_scope = 'mmdet'
# Before a checkpoint is opened: from torch 2.6 on, MMEngine's own ones need what the plugin adds to torch's allow-list.
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmefficientmod.SafeCheckpointHook', interval=1),
    exact_resume=dict(type='mmefficientmod.ExactResumeHook'),
    finite_loss=dict(type='mmefficientmod.FiniteLossHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
# `tools/test.py CONFIG CHECKPOINT --tta`: see docs/mm-tools.md, as MMDetection merges only boxes.
tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
