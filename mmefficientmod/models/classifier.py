"""MMPreTrain's classifier for EfficientMod; it needs MMPreTrain, so configs name this module in ``custom_imports``."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmpretrain.models import ImageClassifier
from torch import Tensor, nn

from ..checkpoints.loading import fit_pretrained, is_from_mmengine, load_whole, read_pretrained
from ..checkpoints.names import BACKBONE_PREFIX, to_classifier_names
from ..checkpoints.weights import COPY, check_values
from ..registry import MODELS
from ..utils import UserError
from .efficientmod import EfficientMod

HEAD = 'head.fc.weight', 'head.fc.bias'


@MODELS.register_module()
class EfficientModClassifier(ImageClassifier):
    """:class:`mmpretrain.models.ImageClassifier` that loads the authors' ImageNet files complete, head included.

    ``init_cfg``, ``load_from`` and tests take them. Where MMEngine loads a checkpoint for other classes, its head is
    left out, with one warning: that is what fine-tuning needs.

    Args:
        *args, **kwargs: As :class:`mmpretrain.models.ImageClassifier` takes them.
            ``init_cfg=dict(type='Pretrained', checkpoint=PATH)`` takes all of a file or rejects it; with ``ema=True``
            it takes the moving average of the weights.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backbone.register_load_state_dict_post_hook(self._judge_head)  # loaded before the head
        self._given: tuple[dict, str] | None = None

    def init_weights(self) -> None:
        """Initialises the weights as ``init_cfg`` says.

        Raises:
            FileNotFoundError: If the checkpoint that it names does not exist.
            UserError: If the file cannot be read safely or does not fit.
        """
        cfg = self.init_cfg if isinstance(self.init_cfg, dict) else {}
        if cfg.get('type') not in ('Pretrained', PretrainedInit):
            super().init_weights()
            return
        path = cfg['checkpoint']
        weights, is_average = read_pretrained(path, cfg.get('ema', False))
        weights = to_classifier_names(weights)
        notes: list[str] = []
        try:
            if isinstance(self.backbone, EfficientMod):
                own = [name for name in weights if name.startswith(BACKBONE_PREFIX)]
                bare = {name[len(BACKBONE_PREFIX) :]: weights.pop(name) for name in own}
                fit, notes = fit_pretrained(bare, self.backbone)
                if fit.deploy and not self.backbone.deploy:
                    self.backbone.switch_to_deploy()
                weights.update((BACKBONE_PREFIX + name, value) for name, value in fit.weights.items())
            check_values(weights)
        except UserError as error:
            raise UserError(f'{path}: {error}') from None
        if not self._fits_head(weights, ''):
            self.head.init_weights()
            self._keep_own_head(weights, '')
        load_whole(self, weights, path)
        message = f'classifier: {len(weights)} tensors loaded from {path}, {COPY[is_average]}'
        print_log('; '.join([message, *notes]), logger='current')

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        own = {name[len(prefix) :]: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
        state_dict.update((prefix + name, value) for name, value in to_classifier_names(own).items())
        self._given = state_dict, prefix
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _judge_head(self, backbone: nn.Module, keys: object) -> None:
        """Leaves out a head of other classes, if MMEngine loads it; torch judges it itself."""
        given, self._given = self._given, None
        if given and is_from_mmengine(keys) and not self._fits_head(*given):
            self._keep_own_head(*given)

    def _fits_head(self, weights: dict[str, Tensor], prefix: str) -> bool:
        """Whether a checkpoint's head has as many classes as this one's; the loader judges a missing head."""
        own = self.state_dict()
        return all(
            name not in own or prefix + name not in weights or weights[prefix + name].shape == own[name].shape
            for name in HEAD
        )

    def _keep_own_head(self, weights: dict[str, Tensor], prefix: str) -> None:
        own = self.state_dict()
        classes = weights[prefix + HEAD[0]].shape[0]
        weights.update((prefix + name, own[name]) for name in HEAD if name in own)
        print_log(
            f"the checkpoint's head, for {classes} classes, is left out: this one, for {len(own[HEAD[0]])}, keeps its "
            'own weights',
            logger='current',
            level=logging.WARNING,
        )
