"""MMPreTrain's classifier with EfficientMod; it needs MMPreTrain, so a config names this module in custom_imports."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmpretrain.models import ImageClassifier
from torch import Tensor

from ..checkpoints.loading import is_called_by_mmengine, meet, read_pretrained
from ..checkpoints.names import BACKBONE_PREFIX, to_classifier_names
from ..checkpoints.weights import COPY, check_values
from ..registry import MODELS
from ..utils import UserError
from .efficientmod import EfficientMod

HEAD = 'head.fc.weight', 'head.fc.bias'


@MODELS.register_module()
class EfficientModClassifier(ImageClassifier):
    """:class:`mmpretrain.models.ImageClassifier` that loads the authors' ImageNet files whole, head included.

    They load by ``init_cfg``, ``load_from`` and as the checkpoint of a test. Where MMEngine loads a head of other
    classes, it is left out, with one warning: that is what fine-tuning asks for.

    Args:
        *args, **kwargs: As :class:`mmpretrain.models.ImageClassifier` takes them.
            ``init_cfg=dict(type='Pretrained', checkpoint=PATH)`` takes all of a file or refuses it; with ``ema=True``
            it takes the moving average of the weights.
    """

    def init_weights(self) -> None:
        """Initialises the weights as ``init_cfg`` says.

        Raises:
            FileNotFoundError: If the checkpoint that it names does not exist.
            UserError: If that cannot be read safely or does not fit.
        """
        cfg = self.init_cfg if isinstance(self.init_cfg, dict) else {}
        if cfg.get('type') not in ('Pretrained', PretrainedInit):
            super().init_weights()
            return
        path = cfg['checkpoint']
        weights, is_average = read_pretrained(path, cfg.get('ema', False))
        weights = to_classifier_names(weights)
        try:
            notes: list[str] = []
            if isinstance(self.backbone, EfficientMod):
                own = {name for name in weights if name.startswith(BACKBONE_PREFIX)}
                fit, notes = meet({name[len(BACKBONE_PREFIX) :]: weights.pop(name) for name in own}, self.backbone)
                weights.update((BACKBONE_PREFIX + name, value) for name, value in fit.weights.items())
            check_values(weights)
            if not self._fits_head(weights, ''):
                self.head.init_weights()
                self._keep_own_head(weights, '')
            self.load_state_dict(weights)
        except RuntimeError as error:  # torch lists names in several lines
            listed = ' '.join(line.strip() for line in str(error).splitlines())
            raise UserError(f'{path}: {listed}') from None
        message = f'classifier: {len(weights)} tensors loaded from {path}, {COPY[is_average]}'
        print_log('; '.join([message, *notes]), logger='current')

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        own = {name[len(prefix) :]: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
        state_dict.update((prefix + name, value) for name, value in to_classifier_names(own).items())
        if is_called_by_mmengine() and not self._fits_head(state_dict, prefix):
            self._keep_own_head(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _fits_head(self, weights: dict[str, Tensor], prefix: str) -> bool:
        """Whether a checkpoint's head has as many classes as this one's; one that is missing is left to the loader."""
        own = self.state_dict()
        return all(
            name not in own or prefix + name not in weights or weights[prefix + name].shape == own[name].shape
            for name in HEAD
        )

    def _keep_own_head(self, weights: dict[str, Tensor], prefix: str) -> None:
        own = self.state_dict()
        theirs = weights[prefix + HEAD[0]].shape[0]
        weights.update((prefix + name, own[name]) for name in HEAD if name in own)
        print_log(
            f"the checkpoint's head, for {theirs} classes, is left out: this one, for {len(own[HEAD[0]])}, keeps its "
            'own weights',
            logger='current',
            level=logging.WARNING,
        )
