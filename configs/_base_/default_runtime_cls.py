# What every classification config shares: logging, checkpoints, visualisation.
default_scope = 'mmpretrain'
# The first before a checkpoint is opened: from torch 2.6 on, MMEngine's own ones need what it adds to the allow-list.
custom_imports = dict(imports=['mmefficientmod', 'mmefficientmod.models.distillation'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmefficientmod.SafeCheckpointHook', interval=1, max_keep_ckpts=3),
    exact_resume=dict(type='mmefficientmod.ExactResumeHook'),
    finite_loss=dict(type='mmefficientmod.FiniteLossHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
)
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends, name='visualizer')
log_level = 'INFO'
load_from = None
resume = False
