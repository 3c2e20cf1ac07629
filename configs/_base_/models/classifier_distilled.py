# EfficientMod's classifier with soft targets of a teacher: RegNetY-160 as DeiT distributes it. Another file:
# --cfg-options model.teacher_checkpoint=PATH; another teacher: model.teacher, any classifier of MMPreTrain or timm.
_base_ = 'classifier.py'
model = dict(
    type='mmefficientmod.DistilledClassifier',
    teacher=dict(type='TimmClassifier', model_name='regnety_160'),
    teacher_checkpoint='checkpoints/regnety_160-a5fe301d.pth',
    alpha=0.9,
    tau=1.0,
)
