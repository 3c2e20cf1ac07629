"""Refuses a test of a model that a checkpoint fills only in part."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from ...registry import HOOKS
from ...utils import UserError, enumerate_names


@HOOKS.register_module()
class WholeModelHook(Hook):
    """Ends a test whose checkpoint lacks weights of the model, of which MMEngine only warns.

    Such a test evaluates random weights. ``tools/test.py`` adds the hook by itself. Weights that the model does not
    have are accepted.

    Raises:
        UserError: While the checkpoint is loaded, with the number of weights that are missing or of another shape.
    """

    priority = 'LOWEST'  # after WeightCopyHook, which chooses the weights

    def __init__(self) -> None:
        self._handle: Any = None

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Has the model judge what is loaded next, by its own names: a model may rename what it reads."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        given = checkpoint.get('state_dict', checkpoint)
        path = runner._load_from

        def judge(module: nn.Module, incompatible: Any) -> None:
            own = module.state_dict()
            counters = [name for name in own if name.endswith('num_batches_tracked')]  # of no use in a test
            missing = [name for name in incompatible.missing_keys if name in own and name not in counters]
            misshaped = [
                name
                for name, value in own.items()
                if isinstance(given.get(name), torch.Tensor) and given[name].shape != value.shape
            ]
            kinds = {'missing': missing, 'of another shape': misshaped}
            listed = '; '.join(
                f'{len(some)} {kind}: {enumerate_names(some, 3)}' for kind, some in kinds.items() if some
            )
            if listed:
                raise UserError(
                    f'{path} does not hold every weight of the model: of {len(own) - len(counters)}, {listed}; '
                    'give the checkpoint that was trained with this config'
                )

        self._handle = model.register_load_state_dict_post_hook(judge)

    def before_test(self, runner: Any) -> None:
        if self._handle:
            self._handle.remove()
