"""Complete timm classifiers in MMPreTrain, and the weights that timm publishes as the checkpoint of a test."""

from __future__ import annotations

from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ...checkpoints.loading import is_from_mmengine
from ...registry import MODELS
from ...utils import UserError, enumerate_names
from .timm_backbone import TIMM_SCHEME, TimmModule, published_weights


@MODELS.register_module()
class TimmLogits(TimmModule):
    """A complete timm classifier, its head included, as the backbone of an ``ImageClassifier`` with a ``ClsHead``.

    All of a checkpoint that MMEngine loads must fit: the accuracy of a model that is half random means nothing.

    Args:
        model_name (str): A name of ``timm.list_models()``, e.g. ``'efficientformerv2_s2'``.
        num_classes (int): Classes. Defaults to 1000.
        init_cfg (dict, optional): As :class:`TimmBackbone` takes it. Defaults to None: timm's own initialisation.
        **kwargs: Passed on to ``timm.create_model``, e.g. ``drop_path_rate``.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such model.
    """

    def __init__(self, model_name: str, num_classes: int = 1000, init_cfg: dict | None = None, **kwargs: Any) -> None:
        super().__init__(model_name, init_cfg, num_classes=num_classes, **kwargs)
        self._misfits: list[str] = []
        self.register_load_state_dict_post_hook(TimmLogits._reject_misfits)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Images (B, 3, H, W) -> a tuple of the logits (B, num_classes)."""
        return (self.model(x),)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        own = {prefix + name: value.shape for name, value in self.state_dict().items()}
        given = {name: value.shape for name, value in state_dict.items() if name.startswith(prefix)}
        self._misfits = [name for name in {**own, **given} if own.get(name) != given.get(name)]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _reject_misfits(self, keys: object) -> None:
        """Called when the weights are loaded: MMEngine only warns of those that do not fit."""
        if self._misfits and is_from_mmengine(keys):
            raise UserError(
                f"the checkpoint does not fit timm's {self.model_name}: {len(self._misfits)} tensors are missing, "
                f'unexpected or of another shape: {enumerate_names(self._misfits, 3)}'
            )


@CheckpointLoader.register_scheme(prefixes=TIMM_SCHEME)
def load_from_timm(filename: str, map_location: object = None) -> dict[str, dict[str, Tensor]]:
    """Reads ``timm://NAME.TAG`` for MMEngine: the weights that timm publishes, as a checkpoint around TimmLogits.

    Args:
        filename (str): That, or ``timm://NAME.TAG=FILE`` for a file of them on this machine.
        map_location (optional): Not used: they come on the CPU.

    Raises:
        UserError: If timm has no weights of that name, or they are not on this machine and cannot be downloaded.
    """
    source, _, file = filename.partition('=')
    name = source[len(TIMM_SCHEME) :]
    remedy = f'name it with --checkpoints BACKBONE=FILE of `compare run`, or write {source}=FILE in place of {source}'
    try:
        weights = published_weights(name, file or source, remedy)
    except (OSError, RuntimeError) as error:
        listed = ' '.join(line.strip() for line in str(error).splitlines())
        raise UserError(f'{file}: {listed}' if isinstance(error, RuntimeError) and file else listed) from error
    return dict(state_dict={f'backbone.model.{key}': value for key, value in weights.items()})
