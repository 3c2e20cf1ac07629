"""What makes a classifier's run impossible: each check returns one line that says what to do, or None."""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping

from torch import Tensor

from ...checkpoints.names import to_classifier_names
from ...codebases.nodes import is_classifier, type_name

LINEAR_HEADS = ('LinearClsHead', 'MultiLabelLinearClsHead')  # those whose weights are `head.fc.*`, as in the files


def find_head_problem(path: str, weights: dict[str, Tensor], model: Mapping) -> str | None:
    """Why the weights of a checkpoint cannot be tested as a classifier: no head, or one for other classes.

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
    """Why a distillation cannot start: the teacher's file is missing, or it has other classes."""
    teacher = model.get('teacher')
    if not isinstance(teacher, Mapping):
        return None
    path = model.get('teacher_checkpoint')
    if path and '://' not in path and not osp.isfile(osp.expanduser(path)):
        return (
            f"the teacher's checkpoint {path} does not exist: download it and name it by --cfg-options "
            'model.teacher_checkpoint=PATH'
        )
    head = teacher.get('head') or teacher
    theirs = head.get('num_classes', 1000)
    own = (model.get('head') or {}).get('num_classes', theirs)
    if theirs != own:
        return f'the teacher has {theirs} classes, the student {own}: distillation needs a teacher of the same classes'
    return None
