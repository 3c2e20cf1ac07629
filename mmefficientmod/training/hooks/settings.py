"""Settings of the optimizer and its schedules in a resumed training: those of the checkpoint hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

# What a schedule counts or derives; all else in its state are settings.
COUNTED = ('last_step', 'base_values', 'total_iters', 'verbose', 'best', 'num_bad_epochs', 'cooldown_counter')
GENERIC = ('begin', 'end', 'by_epoch', 'param_name', 'last_step', 'verbose', 'eta_min_ratio')  # of every kind
# Numbers of an optimizer; its other entries choose an implementation and differ between versions of torch.
NUMBERS = ('lr', 'weight_decay', 'momentum', 'betas', 'eps', 'alpha', 'dampening', 'nesterov', 'amsgrad')


def find_mismatch(runner: Any, checkpoint: Mapping) -> str | None:
    """Why optimizer or schedules of the config cannot take the checkpoint's state, None if they can."""
    new, old = _groups(runner), (checkpoint.get('optimizer') or {}).get('param_groups')
    if new and old:
        if len(new) != len(old):
            return f"the config's optimizer has {len(new)} groups of parameters, the checkpoint's {len(old)}"
        kinds = [
            {key for key in NUMBERS if key in group} & {'betas', 'momentum', 'alpha'} for group in (new[0], old[0])
        ]
        if kinds[0] != kinds[1]:
            return "the config's optimizer is not of the checkpoint's kind"
    return None


def find_schedule_mismatch(runner: Any, checkpoint: Mapping) -> str | None:
    """Why the config's schedules cannot take the checkpoint's state, None if they can: MMEngine mixes the two."""
    new, old = _schedules(runner), checkpoint.get('param_schedulers')
    if new is None or not isinstance(old, list):
        return None
    if len(new) != len(old):
        return f'the config has {len(new)} schedules (param_scheduler), the checkpoint {len(old)}'
    for number, (schedule, state) in enumerate(zip(new, old)):
        own = {key for key in schedule.state_dict() if not key.startswith('_')}.difference(COUNTED, GENERIC)
        if own and not own & set(state):
            return f"param_scheduler.{number} is not of the checkpoint's kind"
    return None


def find_ignored(runner: Any, checkpoint: Mapping) -> list[str]:
    """The config's settings that a resumed training does not use: ``KEY=VALUE (VALUE in the checkpoint)``."""
    pairs = [*_compare_groups(runner, checkpoint), *_compare_schedules(runner, checkpoint)]
    return [f'{key}={_short(new)} ({_short(old)} in the checkpoint)' for key, new, old in pairs]


def _compare_groups(runner: Any, checkpoint: Mapping) -> Iterator[tuple[str, Any, Any]]:
    old = (checkpoint.get('optimizer') or {}).get('param_groups') or []
    for key in NUMBERS:
        initial = f'initial_{key}'  # where a schedule changes the number
        for group, before in zip(_groups(runner) or [], old):
            values = group.get(initial, group.get(key)), before.get(initial, before.get(key))
            if key in group and _differ(*values):
                yield f'optim_wrapper.optimizer.{key}', *values
                break  # one is enough: the others follow from it by the multipliers of their groups


def _compare_schedules(runner: Any, checkpoint: Mapping) -> Iterator[tuple[str, Any, Any]]:
    old = checkpoint.get('param_schedulers')
    for number, (schedule, state) in enumerate(zip(_schedules(runner) or [], old if isinstance(old, list) else [])):
        for key, value in schedule.state_dict().items():
            if not key.startswith('_') and key not in COUNTED and _differ(value, state.get(key)):
                yield f'param_scheduler.{number}.{key}', value, state.get(key)


def use_config(runner: Any, checkpoint: dict) -> None:
    """Puts the config's numbers and schedules, at the checkpoint's place, into the checkpoint that is resumed.

    The optimizer keeps what it has gathered (momenta). The schedules are stepped through the training so far.
    """
    schedules, meta = _schedules(runner) or [], checkpoint['meta']
    schedules = [schedule for schedule in schedules if not getattr(schedule, 'need_val_args', False)]
    by_epoch = [schedule for schedule in schedules if schedule.by_epoch]
    by_iteration = [schedule for schedule in schedules if not schedule.by_epoch]
    epoch_length = meta['iter'] // meta['epoch'] if meta['epoch'] else meta['iter'] + 1
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the schedules miss the optimizer's steps
        for iteration in range(1, meta['iter'] + 1):
            for schedule in by_iteration:
                schedule.step()
            for schedule in by_epoch if iteration % epoch_length == 0 else ():
                schedule.step()
    if isinstance(checkpoint.get('param_schedulers'), list):
        checkpoint['param_schedulers'] = [schedule.state_dict() for schedule in _schedules(runner) or []]
    for group, before in zip(_groups(runner) or [], checkpoint['optimizer']['param_groups']):
        before.update({key: value for key, value in group.items() if key != 'params'})


def last_scheduled_iteration(runner: Any) -> int | None:
    """The iteration after which no schedule changes anything any more, None without schedules or an end."""
    loop, ends = runner.train_loop, []
    by_iteration = hasattr(loop, 'dataloader_iterator')
    for schedule in _schedules(runner) or []:
        if schedule.by_epoch and by_iteration:
            return None
        ends.append(schedule.end * (len(loop.dataloader) if schedule.by_epoch else 1))
    return max(ends, default=None)


def _groups(runner: Any) -> list[dict] | None:
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)  # several optimizers have none in common
    return None if optimizer is None else optimizer.param_groups


def _schedules(runner: Any) -> list | None:
    return runner.param_schedulers if isinstance(runner.param_schedulers, list) else None


def _differ(one: Any, other: Any) -> bool:
    one, other = (list(value) if isinstance(value, tuple) else value for value in (one, other))
    return bool(one != other)


def _short(value: Any) -> str:
    text = f'{value:g}' if isinstance(value, float) else str(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 60 else f'{text[:57]}...'
