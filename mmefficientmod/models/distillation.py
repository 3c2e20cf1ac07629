"""Distillation with soft targets; it needs MMPreTrain, so configs name this module in ``custom_imports``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..checkpoints.loading import load_whole
from ..checkpoints.reading import read_checkpoint
from ..checkpoints.weights import find_weights
from ..registry import MODELS
from .classifier import EfficientModClassifier


class Teacher:
    """Holds the teacher where no ``state_dict()``, optimizer, averaging of weights or ``train()`` reaches it."""

    def __init__(self, settings: dict, checkpoint: str | None) -> None:
        self.settings = settings
        self.checkpoint = checkpoint
        self.model: nn.Module | None = None

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self  # the copy whose weights are averaged needs no teacher of its own

    def load(self) -> nn.Module:
        """The teacher in evaluation mode and without gradients; it is built and read once.

        Raises:
            FileNotFoundError: If its checkpoint does not exist.
            UserError: If that cannot be read safely or does not fit.
        """
        if self.model is None:
            model = MMPRETRAIN_MODELS.build(self.settings)
            if self.checkpoint:
                weights = find_weights(read_checkpoint(self.checkpoint), self.checkpoint)
                load_whole(model, weights, f'the teacher {self.checkpoint}')
            self.model = model.eval().requires_grad_(False)
        return self.model

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Class scores (B, classes) for normalised images (B, 3, H, W)."""
        return self.load().to(images.device)(images, mode='tensor')


@MODELS.register_module()
class DistilledClassifier(EfficientModClassifier):
    """A classifier that also learns from a teacher's scores for the same, mixed images.

    loss = (1 - alpha) * base + alpha * tau^2 * KL(softmax(teacher / tau) || softmax(student / tau)), the mean over the
    batch. One head serves both terms. Only training uses the teacher: a test does not need its file.

    Args:
        *args, **kwargs: As :class:`EfficientModClassifier` takes them.
        teacher (dict): Any classifier of MMPreTrain, or timm's with ``dict(type='TimmClassifier', model_name=NAME)``,
            for images normalised as the student's.
        teacher_checkpoint (str, optional): Its weights. Defaults to None: as it is built.
        alpha (float): Weight of the teacher's term, 0 to 1. Defaults to 0.9.
        tau (float): Temperature, above 0. Defaults to 1.0.

    Raises:
        ValueError: If ``alpha`` or ``tau`` is out of range.
    """

    def __init__(
        self,
        *args: Any,
        teacher: dict,
        teacher_checkpoint: str | None = None,
        alpha: float = 0.9,
        tau: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= alpha <= 1 or tau <= 0:
            raise ValueError(f'alpha must be 0 to 1 and tau above 0, got {alpha} and {tau}')
        self.alpha = alpha
        self.tau = tau
        self.teacher = Teacher(teacher, teacher_checkpoint)

    def init_weights(self) -> None:
        """Initialises the weights, and reads the teacher's: a training that lacks them ends here."""
        super().init_weights()
        self.teacher.load()

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Both terms, weighted, for normalised and mixed images (B, 3, H, W).

        Raises:
            ValueError: If the teacher has another number of classes.
        """
        scores = self.head(self.extract_feat(inputs))
        base = self.head._get_loss(scores, data_samples)['loss']
        targets = self.teacher(inputs)
        if targets.shape != scores.shape:
            raise ValueError(f'the teacher has {targets.shape[-1]} classes, the student {scores.shape[-1]}')
        student, teacher = (F.log_softmax(part.float() / self.tau, -1) for part in (scores, targets))
        divergence = F.kl_div(student, teacher, reduction='batchmean', log_target=True) * self.tau**2
        return dict(loss_base=(1 - self.alpha) * base, loss_distill=self.alpha * divergence)
