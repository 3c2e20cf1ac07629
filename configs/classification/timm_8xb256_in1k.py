# Any classifier of timm: --cfg-options model.backbone.model_name=NAME. tools/compare.py lays each row of the paper's
# Table 1 over it, with its image size and normalisation: mmefficientmod/zoo/timm_classifiers.yml.
_base_ = [
    '../_base_/models/timm_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_300e.py',
    '../_base_/default_runtime_cls.py',
]
