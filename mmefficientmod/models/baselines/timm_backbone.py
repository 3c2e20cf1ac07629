"""timm models for MM libraries: the base of their wrappers, and any of them as a pyramid of feature maps."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn

from ...registry import MODELS

TIMM_SCHEME = 'timm://'


def import_timm() -> ModuleType:
    """Imports timm; raises ImportError with the command that installs it."""
    try:
        import timm
    except ImportError as error:
        raise ImportError('this backbone needs timm, which is not installed: pip install "timm>=1.0.31"') from error
    return timm


def published_weights(model_name: str, source: str, remedy: str, **create_args: Any) -> dict[str, Tensor]:
    """The weights that timm publishes, named as in the model that these arguments of ``timm.create_model`` make.

    timm adapts published weights while it builds the whole classifier and cuts that afterwards: it is built here.

    Args:
        model_name (str): The model of a file.
        source (str): ``timm://NAME.TAG``, or the path of a file as timm publishes it.
        remedy (str): For the message, what to do with a file that was downloaded elsewhere.
        **create_args: The further arguments.

    Raises:
        FileNotFoundError: If the file does not exist.
        ConnectionError: If the weights are not on this machine and cannot be downloaded.
    """
    timm = import_timm()
    args = dict(create_args, pretrained=True)
    if not source.startswith(TIMM_SCHEME):
        if not osp.isfile(source):
            raise FileNotFoundError(f'checkpoint {source} does not exist')
        return timm.create_model(model_name, pretrained_cfg_overlay=dict(file=source), **args).state_dict()
    name = source[len(TIMM_SCHEME) :]
    try:
        return timm.create_model(name, **args).state_dict()
    except OSError as error:
        page = timm.get_pretrained_cfg(name).hf_hub_id
        raise ConnectionError(
            f'the pretrained weights {source} are not on this machine and cannot be downloaded: get '
            f'model.safetensors from https://huggingface.co/{page} elsewhere and {remedy}'
        ) from error


class TimmModule(BaseModule):
    """The base of every wrapper of a timm model: its name, its weights and its deploy form.

    Args:
        model_name (str): A name of ``timm.list_models()``, e.g. ``'repvit_m1_1'``.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint='timm://NAME.TAG')`` takes the weights that timm
            publishes under that name, ``checkpoint=PATH`` a file of them. Defaults to None: timm's own initialisation.
        **create_args: Passed on to ``timm.create_model``.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such model.
    """

    def __init__(self, model_name: str, init_cfg: dict | None = None, **create_args: Any) -> None:
        super().__init__(init_cfg)
        timm = import_timm()
        if not timm.is_model(model_name):
            family = model_name.split('_')[0]
            raise ValueError(
                f'timm {timm.__version__} has no model {model_name!r}; of that family it has: '
                f'{", ".join(timm.list_models(f"{family}*")) or "none, see timm.list_models()"}'
            )
        self.model_name = model_name
        self.create_args = create_args
        self.model = timm.create_model(model_name, **create_args)

    def init_weights(self) -> None:
        """Loads what ``init_cfg`` names; without one the model keeps the initialisation that timm gave it.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ConnectionError: If the weights are not on this machine and cannot be downloaded.
        """
        if self.init_cfg is None:
            return
        source = self.init_cfg['checkpoint']
        remedy = (
            'name it with --cfg-options model.backbone.init_cfg.checkpoint=PATH, or start from random weights with '
            '--cfg-options model.backbone.init_cfg=None'
        )
        self.load_pretrained(published_weights(self.model_name, source, remedy, **self.create_args))
        print_log(f'{self.model_name}: loaded the weights of {source}', logger='current')

    def switch_to_deploy(self) -> None:
        """Turns a trained model into its deploy form, if timm has one for it: fused branches and norms."""
        from timm.utils import reparameterize_model

        self.model = reparameterize_model(self.model, inplace=True)

    def load_pretrained(self, weights: dict[str, Tensor]) -> None:
        """Loads weights named as in ``self.model``, all of them."""
        self.model.load_state_dict(weights)


@MODELS.register_module()
class TimmBackbone(TimmModule):
    """A timm model without its classifier, as a pyramid of feature maps.

    Args:
        model_name (str): A name of ``timm.list_models()``, e.g. ``'repvit_m1_1'``.
        in_channels (int): Channels of the input image. Defaults to 3.
        out_strides (Sequence[int]): Strides of the maps to return, in pixels, ascending. timm counts its levels
            differently from model to model, so they are chosen by stride. Defaults to ``(4, 8, 16, 32)``.
        norm_cfg (dict, optional): Norm layer for every returned map, for families whose own dense-prediction code has
            one. Defaults to None: no norm.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Only sensible with pretrained weights.
            Defaults to False.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint='timm://NAME.TAG')`` takes the weights that timm
            publishes under that name, ``checkpoint=PATH`` a file of them. Defaults to None: timm's own initialisation.
        **kwargs: Passed on to ``timm.create_model``, e.g. ``drop_path_rate``.

    Attributes:
        out_channels (tuple[int]): Channels of the returned maps.
        out_strides (tuple[int]): Their strides in pixels.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such model, or the model has no map of one of the strides.
    """

    def __init__(
        self,
        model_name: str,
        in_channels: int = 3,
        out_strides: Sequence[int] = (4, 8, 16, 32),
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name, init_cfg, features_only=True, in_chans=in_channels, **kwargs)
        strides, channels = self.model.feature_info.reduction(), self.model.feature_info.channels()
        if not set(out_strides) <= set(strides):
            raise ValueError(f'{model_name} has maps of strides {strides}, out_strides asks for {list(out_strides)}')
        self.out_strides = tuple(out_strides)
        levels = [strides.index(stride) for stride in out_strides]
        self.size_divisor = max(strides)
        self.out_channels = tuple(channels[i] for i in levels)
        if levels != list(range(len(strides))):  # what follows the last map would be left without a gradient
            self.create_args['out_indices'] = levels
            self.model = import_timm().create_model(model_name, **self.create_args)
        self.norms = nn.ModuleList(self._build_norm(norm_cfg, dims) for dims in self.out_channels if norm_cfg)
        self.norm_eval = norm_eval

    @staticmethod
    def _build_norm(norm_cfg: dict, num_features: int) -> nn.Module:
        from mmcv.cnn import build_norm_layer

        return build_norm_layer(norm_cfg, num_features)[1]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the pyramid.

        Args:
            x (Tensor): Images (B, in_channels, H, W).

        Returns:
            tuple[Tensor]: One map (B, C, ceil(H / stride), ceil(W / stride)) per entry of ``out_strides``.
        """
        height, width = x.shape[-2:]
        # Padded as the data pipelines do; some models drop what lies beyond their last whole patch.
        x = F.pad(x, (0, -width % self.size_divisor, 0, -height % self.size_divisor))
        maps = [
            self._fit(level, x.shape, stride)[..., : -(-height // stride), : -(-width // stride)]
            for level, stride in zip(self.model(x), self.out_strides)
        ]
        if self.norms:
            maps = [norm(level) for norm, level in zip(self.norms, maps)]
        return tuple(level.contiguous() for level in maps)  # as MMCV's operators read them

    @staticmethod
    def _fit(level: Tensor, image_shape: Sequence[int], stride: int) -> Tensor:
        # MobileViTv2 enlarges a map of odd sides to even ones and leaves it so.
        size = (image_shape[-2] // stride, image_shape[-1] // stride)
        return level if level.shape[-2:] == size else F.interpolate(level, size, mode='bilinear')

    def train(self, mode: bool = True) -> TimmBackbone:
        """Sets training mode; batch norms stay in evaluation mode with ``norm_eval``."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
