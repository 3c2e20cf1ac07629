# What every segmentation config shares: logging, checkpoints, visualisation.
default_scope = 'mmseg'
# Before a checkpoint is opened: from torch 2.6 on, MMEngine's own ones need what the plugin adds to torch's allow-list.
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmefficientmod.SafeCheckpointHook', by_epoch=False, interval=4000),
    exact_resume=dict(type='mmefficientmod.ExactResumeHook'),
    finite_loss=dict(type='mmefficientmod.FiniteLossHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(type='SegTTAModel')  # `tools/test.py CONFIG CHECKPOINT --tta`
