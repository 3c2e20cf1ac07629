"""EfficientMod as a pyramid backbone for MMDetection, MMSegmentation and MMPreTrain."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checkpoints.loading import fit_some, fit_weights, is_from_mmengine, load_pretrained, rename_weights
from ..registry import MODELS
from ..utils import enumerate_names
from .channels_first import ChannelsFirst
from .deploy import fold_blocks
from .layers import AttentionBlock, ModulationBlock, PatchEmbed, ToNCHW

MIN_INPUT_SIZE = 32
RELEASED_INIT = [
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]


@MODELS.register_module()
class EfficientMod(BaseModule):
    """EfficientMod: a convolutional context branch modulates a wide value branch, at one product per block.

    The backbone of `Efficient Modulation for Vision Networks <https://arxiv.org/abs/2403.19963>`_ (ICLR 2024).

    Args:
        arch (str | dict): ``'xxs'``, ``'xs'``, ``'s'``, ``'s_conv'``, or a dict with the fields of
            :attr:`arch_settings`:

            - **embed_dims** (Sequence[int]): channels of each stage.
            - **depths** (Sequence[int]): modulation blocks of each stage.
            - **attn_depths** (Sequence[int]): attention blocks of each stage, after its modulation blocks.
            - **ratio** (int): widening of the value branch in every second modulation block (1 in the others).
            - **attn_ratios** (Sequence[float]): widening of the MLP in the attention blocks of each stage.
            - **drop_path_rate** (float): the default of the argument of that name.
            - **block** (str | dict): optional, the class in the place of the modulation block, with its further
              arguments, e.g. one of :mod:`mmefficientmod.models.ablations`.

            Defaults to ``'s'``.
        in_channels (int): Channels of the input image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages whose output is returned, ascending; negative ones count from the
            end. Stages after the last of them are not built. Defaults to ``(0, 1, 2, 3)``.
        frozen_stages (int): -1 freezes nothing, 0 the stem, n the stem and the first n stages; frozen parts stay in
            evaluation mode. Defaults to -1.
        drop_path_rate (float, optional): Stochastic depth of the last block; it grows linearly from 0 at the first.
            Defaults to the arch's own.
        attn_max_keys (int, optional): Bounds the cost of attention on large images, which grows with the square of
            their area: where a stage has more pixels than this, its keys and values are averaged over square windows
            until there are at most as many. That is **not the published network**: see ``docs/benchmarks.md``.
            Defaults to None, no bound.
        with_cp (bool): Recompute blocks in the backward pass to save memory. Defaults to False.
        contiguous_outputs (bool): Copy the outputs to contiguous NCHW maps. False returns channels-last views: for
            readers that respect strides. MMCV's RoIAlign and deformable convolutions do not: they read any map as
            contiguous, without an error. Defaults to True.
        deploy (bool): Build the deploy form, for a state dict that was saved after :meth:`switch_to_deploy`.
            ``init_cfg`` and MMEngine's ``load_checkpoint`` switch to it where the file is in it. Defaults to False.
        init_cfg (dict | list[dict], optional): Initialisation. ``dict(type='Pretrained', checkpoint=PATH)`` takes the
            authors' released files as they are. Defaults to the released initialisation.

    Attributes:
        out_channels (tuple[int]): Channels of the returned levels, e.g. ``(32, 64, 144, 312)``.
        out_strides (tuple[int]): Their strides in pixels, e.g. ``(4, 8, 16, 32)``.
        levels (nn.ModuleList): One module per stage, without parameters, that puts out the level (B, C, H, W): the name
            for hooks and activation maps, e.g. ``backbone.levels.3``. Only those of ``out_indices`` are called.
        deploy (bool): Whether this is the deploy form.

    Raises:
        ValueError: If ``arch``, ``out_indices``, ``frozen_stages`` or ``attn_max_keys`` is not one of the values above.

    Example:
        >>> import torch
        >>> from mmefficientmod.models import EfficientMod
        >>> levels = EfficientMod('xxs')(torch.rand(1, 3, 64, 96))
        >>> [tuple(level.shape) for level in levels]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    # fmt: off
    arch_settings = {
        'xxs': dict(embed_dims=(32, 64, 128, 256), depths=(2, 2, 6, 2), attn_depths=(0, 0, 1, 2),
                    ratio=6, attn_ratios=(4, 4, 4, 4), drop_path_rate=0.),
        'xs': dict(embed_dims=(32, 64, 144, 288), depths=(3, 3, 4, 2), attn_depths=(0, 0, 3, 3),
                   ratio=4, attn_ratios=(4, 4, 4, 4), drop_path_rate=0.),
        's': dict(embed_dims=(32, 64, 144, 312), depths=(4, 4, 8, 4), attn_depths=(0, 0, 4, 4),
                  ratio=6, attn_ratios=(4, 4, 4, 5), drop_path_rate=0.02),
        's_conv': dict(embed_dims=(40, 80, 160, 344), depths=(4, 4, 12, 8), attn_depths=(0, 0, 0, 0),
                       ratio=6, attn_ratios=(4, 4, 4, 4), drop_path_rate=0.02),
    }
    # fmt: on

    def __init__(
        self,
        arch: str | dict = 's',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float | None = None,
        attn_max_keys: int | None = None,
        with_cp: bool = False,
        contiguous_outputs: bool = True,
        deploy: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg or RELEASED_INIT)
        setting = self._parse_arch(arch)
        self.arch = arch if isinstance(arch, str) else 'custom'
        embed_dims, depths, attn_depths = (setting[key] for key in ('embed_dims', 'depths', 'attn_depths'))

        num_stages = len(depths)
        indices = [out_indices] if isinstance(out_indices, int) else out_indices
        indices = [i + num_stages if i < 0 else i for i in indices]
        if not indices or indices != sorted(set(indices) & set(range(num_stages))):
            raise ValueError(f'out_indices must be ascending stages out of 0 to {num_stages - 1}, got {out_indices}')
        self.out_indices = tuple(indices)
        self.out_channels = tuple(embed_dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2**i for i in self.out_indices)
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages must be -1 to {num_stages}, got {frozen_stages}')
        if attn_max_keys is not None and attn_max_keys < 1:
            raise ValueError(f'attn_max_keys must be None or at least 1, got {attn_max_keys}')
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        rate = setting['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        if not 0 <= rate < 1:
            raise ValueError(f'drop_path_rate must be at least 0 and below 1, got {rate}')
        rates = iter(torch.linspace(0, rate, sum(depths) + sum(attn_depths), device='cpu').tolist())
        make_block = self._find_block(setting.get('block'))
        # The first part, as it has no weights: its hook is called before any weight is loaded.
        self.levels = nn.ModuleList(ToNCHW(copy=contiguous_outputs) for _ in range(self.out_indices[-1] + 1))
        self.levels.register_load_state_dict_post_hook(self._judge_weights)
        self._given: tuple[dict, str] | None = None
        self.patch_embeds = nn.ModuleList()
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            dims = embed_dims[i]
            self.patch_embeds.append(
                PatchEmbed(in_channels, dims, 7, 4) if i == 0 else PatchEmbed(embed_dims[i - 1], dims, 3, 2)
            )
            blocks = [make_block(dims, setting['ratio'] if j % 2 else 1, next(rates)) for j in range(depths[i])]
            blocks += [
                AttentionBlock(dims, setting['attn_ratios'][i], next(rates), attn_max_keys)
                for _ in range(attn_depths[i])
            ]
            self.stages.append(nn.ModuleList(blocks))
        self._freeze_stages()
        self.deploy = False
        if deploy:
            self.switch_to_deploy()

    @classmethod
    def _parse_arch(cls, arch: str | dict) -> dict:
        fields = cls.arch_settings['s'].keys()
        if isinstance(arch, str):
            if arch not in cls.arch_settings:
                raise ValueError(
                    f'unknown arch {arch!r}: choose one of {", ".join(cls.arch_settings)} '
                    f'or give a dict with {", ".join(fields)}'
                )
            return cls.arch_settings[arch]
        if set(arch) - {'block'} != set(fields):
            raise ValueError(f'an arch dict needs exactly the fields {", ".join(fields)}; got {", ".join(arch)}')
        lengths = {len(arch[key]) for key in ('embed_dims', 'depths', 'attn_depths', 'attn_ratios')}
        if len(lengths) > 1:
            raise ValueError(f'embed_dims, depths, attn_depths and attn_ratios need one value a stage, got {arch}')
        if not isinstance(arch['ratio'], int) or arch['ratio'] < 1:  # the value is cut into as many pieces
            raise ValueError(f'ratio must be an integer of at least 1, got {arch["ratio"]}')
        return arch

    @staticmethod
    def _find_block(block: str | dict | None) -> Callable[..., nn.Module]:
        if block is None:
            return ModulationBlock
        options = dict(type=block) if isinstance(block, str) else dict(block)
        name = options.pop('type', None)
        kind = MODELS.get(name) if name else None
        if kind is None:
            raise ValueError(f'arch names an unknown block {name!r}: it must be registered, e.g. ModulationVariant')
        return partial(kind, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the pyramid.

        Args:
            x (Tensor): Images (B, in_channels, H, W). H and W are at least 32 pixels each in training; otherwise a
                smaller image is padded with zeros at its right and bottom.

        Returns:
            tuple[Tensor]: One map per index of ``out_indices``, (B, C, ceil(H / stride), ceil(W / stride)).

        Raises:
            ValueError: If H or W is below 32 in training.
            RuntimeError: If the deploy form is trained.
        """
        if self.training and self.deploy and self.frozen_stages < len(self.stages):
            raise RuntimeError(
                'this is the deploy form, which is not trained: build the backbone without deploy=True and start '
                'from the checkpoint that the deploy form was made of'
            )
        height, width = x.shape[-2:]
        is_small = height < MIN_INPUT_SIZE or width < MIN_INPUT_SIZE
        if is_small:
            if self.training:
                raise ValueError(
                    f'EfficientMod needs images of at least {MIN_INPUT_SIZE} x {MIN_INPUT_SIZE} pixels in training, '
                    f'got {height} x {width}: resize or pad them'
                )
            x = F.pad(x, (0, max(MIN_INPUT_SIZE - width, 0), 0, max(MIN_INPUT_SIZE - height, 0)))
        x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)  # NHWC from here to the last block
        outputs = []
        for i, (patch_embed, blocks) in enumerate(zip(self.patch_embeds, self.stages)):
            x = patch_embed(x)
            for block in blocks:
                recompute = self.with_cp and torch.is_grad_enabled()
                x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if i in self.out_indices:
                stride = 4 * 2**i
                level = x[:, : -(-height // stride), : -(-width // stride)] if is_small else x
                outputs.append(self.levels[i](level))
        return tuple(outputs)

    def init_weights(self) -> None:
        """Initialises the weights as ``init_cfg`` says; see :func:`load_pretrained`."""
        init_cfgs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        pretrained = [cfg for cfg in init_cfgs if cfg.get('type') in ('Pretrained', PretrainedInit)]
        if not pretrained:
            super().init_weights()
        for cfg in pretrained:  # each leaves nothing to other initialisers
            load_pretrained(self, **{key: value for key, value in cfg.items() if key != 'type'})

    def switch_to_deploy(self) -> None:
        """Turns the trained backbone into its deploy form: fewer operations, the same outputs; once is enough.

        Raises:
            ValueError: If a block or a part of one is wrapped, parametrised, pruned or hooked.
        """
        fold_blocks(self.stages)
        self.deploy = True
        self._freeze_stages()

    def to_channels_first(self) -> nn.Module:
        """The deploy form with channels first, of which INT8 files are made; it shares the weights.

        A subclass, which may compute something else, and the training form return themselves.
        """
        return ChannelsFirst(self) if type(self) is EfficientMod and self.deploy else self

    def train(self, mode: bool = True) -> EfficientMod:
        """Sets training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embeds[0], *self.patch_embeds[1 : self.frozen_stages], *self.stages[: self.frozen_stages]]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The depth of a parameter, for MMPreTrain's layer-wise learning-rate decay.

        Args:
            param_name (str): Name of the parameter, with ``prefix``.
            prefix (str): What precedes the backbone's own names. Defaults to ''.

        Returns:
            tuple[int, int]: The layer: 0 for the stem, then one a block (a down-sampling goes with the block after it),
            the last for whatever lies outside the backbone; and the number of layers.
        """
        num_layers = sum(len(blocks) for blocks in self.stages) + 2
        match = re.match(r'(patch_embeds|stages)\.(\d+)\.(\d+)?', param_name[len(prefix) :])
        if match is None or not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        stage, block = int(match[2]), int(match[3] or 0)
        if match[1] == 'patch_embeds' and stage == 0:
            return 0, num_layers
        return 1 + sum(len(blocks) for blocks in self.stages[:stage]) + block, num_layers

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        own = {name[len(prefix) :]: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
        weights, _ = rename_weights(own, len(self.stages))
        state_dict.update((prefix + name, value) for name, value in weights.items())
        self._given = own, prefix
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _judge_weights(self, levels: nn.Module, keys: object) -> None:
        """Rejects weights that would ruin a run, before one of them is loaded; switches to the form that they are in.

        torch raises or returns missing and unexpected names, as its caller wants: only a wrong shape is rejected.
        MMEngine only warns of all three.
        """
        if self._given is None:  # only the levels are loaded
            return
        (weights, prefix), self._given = self._given, None
        if not is_from_mmengine(keys):
            fit = fit_weights(weights, self, any_form=False)
            if fit.misshaped:
                raise fit.explain()
            return
        fit = fit_some(weights, self, prefix)
        if fit.deploy and not self.deploy:
            self.switch_to_deploy()
        if not fit.is_complete:
            print_log(
                f'EfficientMod arch {fit.arch!r} is loaded in part: {fit.num_loaded} tensors loaded; '
                f'{len(fit.missing)} missing: {enumerate_names(fit.missing, 3)}; '
                f'{len(fit.unexpected)} unexpected: {enumerate_names(fit.unexpected, 3)}',
                logger='current',
                level=logging.WARNING,
            )
