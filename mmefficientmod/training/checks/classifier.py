"""Checks a classifier's run before its start; each check returns an error message or None."""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping

from torch import Tensor

from ...checkpoints.names import to_classifier_names
from ...codebases.nodes import is_classifier, type_name

LINEAR_HEADS = ('LinearClsHead', 'MultiLabelLinearClsHead')  # their weights are named `head.fc.*`, as in the files


def find_head_problem(path: str, weights: dict[str, Tensor], model: Mapping) -> str | None:
    """The error of a checkpoint that is tested as a classifier without a head, or with a head for other classes.

    Heads other than a single linear layer are not judged: their weights have other names.
    """
    own = model.get('head') or {}
    if not is_classifier(model) or type_name(own) not in LINEAR_HEADS:
        return None
    head, classes = to_classifier_names(weights).get('head.fc.weight'), own.get('num_classes')
    if head is not None and len(head) == classes:
        return None
    found = f'a head for {len(head)} classes' if head is not None else 'no head'
    return (
        f'{path} has {found}, the config one for {classes}: test a checkpoint of this config, or set '
        '--cfg-options model.head.num_classes=N and the classes of the data'
    )


def find_teacher_problem(model: Mapping) -> str | None:
    """The error of a distillation whose teacher has no file, or other classes than the student."""
    teacher = model.get('teacher')
    if not isinstance(teacher, Mapping):
        return None
    path = model.get('teacher_checkpoint')
    if path and '://' not in path and not osp.isfile(osp.expanduser(path)):
        return (
            f"the teacher's checkpoint {path} does not exist: download it and name it with --cfg-options "
            'model.teacher_checkpoint=PATH'
        )
    head = teacher.get('head') or teacher
    taught = head.get('num_classes', 1000)
    learnt = (model.get('head') or {}).get('num_classes', taught)
    if taught != learnt:
        return (
            f'the teacher has {taught} classes, the student {learnt}: distillation needs a teacher of the same classes'
        )
    return None
