"""Resumes a training so that it ends as if it had never been stopped."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook

from ...registry import HOOKS
from ...utils import UserError
from ..start import choose_start, read_config_file
from .batches import EPOCH, ITERATION, PlacedBatches, place_batches, seed_all
from .settings import find_ignored, find_mismatch, find_schedule_mismatch, last_scheduled_iteration, use_config
from .validations import find_validation, note_validation

STATE = 'exact_resume'  # the key of a checkpoint under which the place in the data is kept
NEW_SCHEDULE = 'default_hooks.exact_resume.new_schedule=True'
VALIDATED = 'exact_resume_validated'  # the runtime information that names the last iteration after which was validated


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a resumed training bit for bit the one that was not stopped, where the operators are deterministic.

    MMEngine's checkpoints hold weights, optimizer and schedules, but neither random states nor the place in the data.
    With this hook no random state is needed. Python, NumPy and torch are seeded again for each iteration, and for each
    batch in the process that loads it, from the run's seed, the process's number and the place in the training. The
    data do not depend on the number of workers either. A checkpoint keeps its place in the epoch.

    A resumed training

    - starts from the newest checkpoint that is whole, and says which were passed over;
    - has the order of data of the run that it continues, also where the config sets no seed;
    - leaves out what was trained on without loading it;
    - validates first if the checkpoint was written before a validation that was due and not done;
    - says which settings of the config have no effect: optimizer and schedules are those of the checkpoint.

    Args:
        new_schedule (bool): Resume with the learning rate, the schedules and the other numbers of the optimizer that
            the config sets. The schedules are stepped to the checkpoint's place. Defaults to False.

    It does not restore what transforms or hooks remember from one sample to the next (``CachedMosaic``,
    ``EarlyStoppingHook``), nor gradients that are being accumulated.

    Example:
        >>> default_hooks = dict(exact_resume=dict(type='mmefficientmod.ExactResumeHook'))
    """

    priority = 'HIGHEST'  # random numbers of other hooks follow from the place as well

    def __init__(self, new_schedule: bool = False) -> None:
        self.new_schedule = new_schedule
        self._batches: PlacedBatches | None = None
        self._state: dict | None = None  # of the checkpoint that is resumed
        self._done = 0  # batches of the epoch that are trained on, in a checkpoint that is written now
        self._saved: tuple[str, int] | None = None  # identity and iteration of the newest checkpoint of this run

    def before_run(self, runner: Any) -> None:
        """Chooses where the training starts, if tools/train.py has not done so."""
        if not runner._resume or getattr(runner, 'start_is_chosen', False):
            return
        config = Config(dict(resume=True, load_from=runner._load_from, work_dir=runner.work_dir))
        written = read_config_file(runner.cfg)
        loaded = None if config.load_from == written.get('load_from') else config.load_from
        try:
            choice = choose_start(config, written, loaded=loaded)
        except (UserError, FileNotFoundError) as error:
            raise SystemExit(f'error: {error}') from None
        for line in choice.notes:
            runner.logger.info(line)
        runner._load_from, runner._resume = config.load_from, config.resume

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        state = checkpoint.get(STATE)
        self._state = state if isinstance(state, dict) else None
        if runner._resume:
            self._settle(runner, checkpoint)

    def _settle(self, runner: Any, checkpoint: dict) -> None:
        """Says which settings of the config have no effect, or puts them into the checkpoint."""
        path = runner._load_from
        fresh = f'a fresh optimizer at iteration 0: --cfg-options load_from={path}, without --resume'
        schedule = f'--cfg-options {NEW_SCHEDULE}'
        problem = find_mismatch(runner, checkpoint)
        if problem:
            raise SystemExit(f'error: {path} cannot be resumed: {problem}; {fresh}')
        if self.new_schedule:
            use_config(runner, checkpoint)
            runner.logger.info('learning rate, schedules and other numbers of the optimizer are those of the config')
            return
        problem = find_schedule_mismatch(runner, checkpoint)
        if problem:
            raise SystemExit(f"error: {path} cannot be resumed: {problem}; the config's schedules: {schedule}; {fresh}")
        ignored = find_ignored(runner, checkpoint)
        if ignored:
            scaled = ' (auto_scale_lr included)' if (runner.auto_scale_lr or {}).get('enable') else ''
            runner.logger.warning(
                f'optimizer and schedules are those of the checkpoint; of the config{scaled}, no effect have '
                f'{", ".join(ignored)}. To use them: {schedule}; {fresh}'
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        identity = uuid.uuid4().hex
        checkpoint[STATE] = dict(done=self._done, identity=identity, **_geometry(runner))
        if 'optimizer' in checkpoint:
            self._saved = identity, checkpoint['meta']['iter']

    def before_train(self, runner: Any) -> None:
        loop, rank = runner.train_loop, get_rank()
        own_seeds = bool(runner._randomness_cfg.get('diff_rank_seed'))
        sampler_seed = runner.seed - rank if own_seeds else runner.seed
        self._batches = place_batches(loop.dataloader, runner._train_dataloader, runner.seed, sampler_seed)
        resumed = loop.iter > 0
        if resumed:
            self._report(runner)
        self._done = self._find_place(runner) if resumed else 0
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _restart(loop, self._batches)
        if resumed and not self._done:
            runner.register_hook(_MissedValidation((self._state or {}).get('identity')), priority='LOWEST')

    def _report(self, runner: Any) -> None:
        """Logs how a resumed training differs from one that was not stopped, and where its schedules end."""
        loop = runner.train_loop
        if self._state is None:
            runner.logger.warning(
                'the checkpoint was written without ExactResumeHook: this training will differ in its random numbers'
            )
        elif _differs(self._state, runner):
            runner.logger.warning(
                'batch size, number of processes or data are not those of the checkpoint: the order of data will differ'
            )
        end = last_scheduled_iteration(runner)
        if loop.iter >= loop.max_iters or loop.epoch >= loop.max_epochs > 1:
            runner.logger.info(f'the training is finished: its checkpoint is at iteration {loop.iter}')
        elif end is not None and end < loop.max_iters:
            runner.logger.warning(
                f'the schedules end at iteration {end} of {loop.max_iters}: from there on, the learning rate stays as '
                f'it is; for a longer one set param_scheduler and --cfg-options {NEW_SCHEDULE}'
            )

    def _find_place(self, runner: Any) -> int:
        """Batches of this epoch that were trained on."""
        if hasattr(runner.train_loop, 'dataloader_iterator') or self._state is None or _differs(self._state, runner):
            return 0
        done = self._state.get('done')
        return done if isinstance(done, int) and 0 < done < len(runner.train_loop.dataloader) else 0

    def before_train_epoch(self, runner: Any) -> None:
        seed_all(runner.seed, get_rank(), EPOCH, runner.epoch)
        loop = runner.train_loop
        if self._batches is None or hasattr(loop, 'dataloader_iterator'):
            return
        self._batches.epoch, self._batches.skip = runner.epoch, self._done
        if self._done:  # the loop counts from 0
            loop.run_iter = partial(_run_later_iter, loop, self._done)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        seed_all(runner.seed, get_rank(), ITERATION, runner.iter)
        self._done = batch_idx + 1

    def after_train_epoch(self, runner: Any) -> None:
        self._done = 0
        vars(runner.train_loop).pop('run_iter', None)

    def after_val_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        runner.message_hub.update_info(VALIDATED, runner.iter)
        folder = _checkpoint_folder(runner.message_hub.runtime_info.get('last_ckpt'))
        if is_main_process() and folder and metrics and self._saved and self._saved[1] == runner.iter:
            note_validation(folder, self._saved[0], metrics)


class _MissedValidation(Hook):
    """Validates once before a resumed training goes on, where a kill came between a checkpoint and its validation.

    Where the validation was done as well, the hooks get its metrics again, without the work.
    """

    def __init__(self, identity: str | None) -> None:
        self.identity = identity  # of the checkpoint

    def before_train(self, runner: Any) -> None:
        loop = runner.train_loop
        if runner.val_loop is None or runner.message_hub.runtime_info.get(VALIDATED) == loop.iter:
            return
        loop._decide_current_val_interval()
        by_iteration = hasattr(loop, 'dataloader_iterator')
        done, most = (loop.iter, loop.max_iters) if by_iteration else (loop.epoch, loop.max_epochs)
        if done >= loop.val_begin and (done % loop.val_interval == 0 or done == most):
            metrics = [self._find_metrics(runner)]
            broadcast_object_list(metrics)  # the processes of other machines may not see the note
            if metrics[0] is None:
                runner.logger.info('The checkpoint was written before a validation, which is done now')
                runner.val_loop.run()
                return
            runner.logger.info('The checkpoint was validated before the stop; its metrics were noted')
            for place in ('before_val', 'before_val_epoch'):
                runner.call_hook(place)
            runner.call_hook('after_val_epoch', metrics=metrics[0])
            runner.call_hook('after_val')

    def _find_metrics(self, runner: Any) -> dict | None:
        folder = _checkpoint_folder(runner._load_from)
        return find_validation(folder, self.identity) if folder and self.identity and is_main_process() else None


def _checkpoint_folder(path: str | None) -> Path | None:
    """The local folder of a checkpoint."""
    return None if not path or '://' in path else Path(path).expanduser().parent


class _Advanced:
    """A loop's iterator that has passed what was trained on: the loop's own skipping costs nothing."""

    def __init__(self, iterator: Any, passed: int) -> None:
        self.iterator, self.passed = iterator, passed

    def __iter__(self) -> _Advanced:
        return self

    def __next__(self) -> Any:
        if self.passed:
            self.passed -= 1
            return None
        return next(self.iterator)

    def skip_iter(self, count: int) -> None:
        """What the loop of MMEngine's continuation calls in place of ``next()``."""
        self.passed -= count


def _restart(loop: Any, batches: PlacedBatches | None) -> Any:
    """The iterator of a loop that counts iterations, at the place where the training stands."""
    if batches is None:
        return loop.dataloader_iterator
    kind = type(loop.dataloader_iterator)
    loop.dataloader_iterator = None  # ends the workers that began at the start
    batches.epoch, batches.skip = 0, loop.iter
    skips = not getattr(loop, 'fast_forward_on_resume', False)  # an option of the continuation
    return _Advanced(kind(loop.dataloader), loop.iter if skips else 0)


def _run_later_iter(loop: Any, first: int, idx: int, data_batch: Any) -> None:
    type(loop).run_iter(loop, first + idx, data_batch)


def _geometry(runner: Any) -> dict[str, int]:
    """What must be the same for the same order of data."""
    loader = runner.train_loop.dataloader
    batch_size = getattr(loader.batch_sampler, 'batch_size', None) or loader.batch_size or 0
    return dict(world_size=get_world_size(), batch_size=batch_size, samples=len(loader.dataset))


def _differs(state: dict, runner: Any) -> bool:
    return any(state.get(key) != value for key, value in _geometry(runner).items())
