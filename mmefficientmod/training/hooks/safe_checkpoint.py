"""Writes checkpoints so that neither a kill nor a full disk leaves half of one, or none."""

from __future__ import annotations

import hashlib
import os
import os.path as osp
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import BaseLoop

from ...checkpoints.reading import read_checkpoint
from ...registry import HOOKS
from ...utils import UserError, replace_file
from ..interrupt import Interruption, protect_workers, resume_command
from ..lock import lock_work_dir, unlock_work_dirs

BACKEND = 'mmefficientmod.whole_files'
INTERRUPTED = 'interrupted.pth'  # the state at Ctrl-C or SIGTERM, removed after the next checkpoint


@register_backend(BACKEND)
class WholeFilesBackend(LocalBackend):
    """MMEngine's local files, but written under another name, flushed, and renamed when they are whole."""

    def put(self, obj: Any, filepath: Any) -> None:
        """Writes bytes, or a view of them, to a file."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, obj)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` with the same arguments, for trainings that may be killed or fill the disk.

    - A checkpoint of any kind is written under a temporary name, flushed and renamed, and so is ``last_checkpoint``: a
      file under its own name is whole.
    - An old checkpoint, the best one included, is removed after the new one is written, so that one is left at any
      moment. Files outside the run's own folder are never removed: the folder may be a copy of another run's.
    - Where it cannot be written, the run ends in one line that names the last one that is whole.
    - Ctrl-C and SIGTERM save the state after the iteration, as ``interrupted.pth``. The run ends with exit code 130 or
      143 and the command that resumes it. In the middle of an epoch, this needs ``ExactResumeHook``.
    - A second training in the same work directory is refused in one line.

    ``backend_args`` and other addresses than local files are left to MMEngine.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type='mmefficientmod.SafeCheckpointHook', interval=1))
    """

    backend_args: dict | None
    _interruption: Interruption | None = None  # a validation or a test without a training has none

    def before_run(self, runner: Any) -> None:
        """Prepares a training; tests and validations run the hook as well."""
        train_loop = runner._train_loop
        if not isinstance(train_loop, BaseLoop):
            return
        if is_main_process():
            try:
                lock_work_dir(runner.work_dir)
            except UserError as error:
                raise SystemExit(f'error: {error}') from None
        for loop in (train_loop, runner._val_loop):
            if isinstance(loop, BaseLoop):
                protect_workers(loop.dataloader)
        self._interruption = Interruption()
        if 'run' not in vars(train_loop):
            vars(train_loop)['run'] = partial(self._run, train_loop.run)

    def _run(self, run: Callable[[], Any]) -> Any:
        try:
            return self._interruption.during(run) if self._interruption else run()
        finally:
            unlock_work_dirs()

    def before_train(self, runner: Any) -> None:
        place = str(self.out_dir or runner.work_dir)
        if self.backend_args is None and self.file_client_args is None and '://' not in place:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        self._written: str | None = None
        self._written_iter = -1
        self._leave_other_folders(runner)

    # --- what is removed ---

    def _best(self) -> dict[str, str | None]:
        """The runtime information that names a best checkpoint -> its path, for each metric."""
        if not self.save_best:
            return {}
        if len(self.key_indicators) == 1:
            return {'best_ckpt': self.best_ckpt_path}
        return {f'best_ckpt_{key}': self.best_ckpt_path_dict.get(key) for key in self.key_indicators}

    def _set_best(self, best: dict[str, str | None]) -> None:
        if 'best_ckpt' in best:
            self.best_ckpt_path = best['best_ckpt']
        elif best:
            self.best_ckpt_path_dict = {key: best[f'best_ckpt_{key}'] for key in self.key_indicators}

    def _leave_other_folders(self, runner: Any) -> None:
        """Takes the best checkpoints of this run's folder for those that the resumed checkpoint names.

        The resumed checkpoint names them by their path, which is another run's where a folder was copied or moved.
        """
        best = self._best()
        for info, path in best.items():
            if not path:
                continue
            own = self.file_backend.join_path(self.out_dir, osp.basename(path))
            if self.file_backend.exists(own):
                best[info] = own
                runner.message_hub.update_info(info, own)
            else:
                best[info] = None
                runner.logger.info(f'The best checkpoint so far is {path}, outside {self.out_dir}: it is left there')
        self._set_best(best)

    def _remove(self, path: str) -> bool:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # as DeepSpeed and FSDP write them
            self.file_backend.rmtree(path)
        else:
            return False
        return True

    # --- what is written ---

    def _write(self, runner: Any, name: str, meta: dict, by_epoch: bool, **kinds: bool) -> None:
        """Writes a checkpoint to resume from, and notes it."""
        path = self.file_backend.join_path(self.out_dir, name)
        with self._explaining(path):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                meta=meta,
                by_epoch=by_epoch,
                backend_args=self.backend_args,
                **kinds,
                **self.args,
            )
            if is_main_process():
                replace_file(Path(runner.work_dir) / 'last_checkpoint', path)
        self._written, self._written_iter = path, meta['iter']

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        kept = self.keep_ckpt_ids if self.max_keep_ckpts > 0 else None
        outdated = []
        if kept is not None and step not in kept:
            while len(kept) >= self.max_keep_ckpts:
                outdated.append(self.filename_tmpl.format(kept.popleft()))
            kept.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        kinds = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler)
        self._write(runner, name, meta, self.by_epoch, **kinds)
        if is_main_process():
            for old in (*outdated, INTERRUPTED):
                self._remove(self.file_backend.join_path(self.out_dir, old))

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        before = self._best()
        self._set_best(dict.fromkeys(before))  # MMEngine removes the old one before it writes the new one
        with self._explaining(osp.join(str(self.out_dir), 'best_*.pth')):
            super()._save_best_checkpoint(runner, metrics)
        after = {info: path or before.get(info) for info, path in self._best().items()}
        self._set_best(after)
        if is_main_process():
            for old in {before[info] for info, path in after.items() if before.get(info) not in (None, path)}:
                if self._remove(str(old)):
                    runner.logger.info(f'The previous best checkpoint {old} is removed')

    @master_only
    def _publish_model(self, runner: Any, ckpt_path: str) -> None:
        if self.backend_args != dict(backend=BACKEND):
            super()._publish_model(runner, ckpt_path)
            return
        checkpoint = read_checkpoint(ckpt_path)
        content = BytesIO()
        torch.save({key: value for key, value in checkpoint.items() if key in (self.published_keys or ())}, content)
        path = f'{osp.splitext(ckpt_path)[0]}-{hashlib.sha256(content.getbuffer()).hexdigest()[:8]}.pth'
        with self._explaining(path):
            replace_file(Path(path), content.getvalue())
        runner.logger.info(f'The checkpoint ({ckpt_path}) is published to {path}.')

    @contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        """Ends the program in one line where a file cannot be written."""
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            left = (
                f'the last one that is whole is {self._written}' if self._written else 'this run has written none yet'
            )
            raise SystemExit(
                f'error: checkpoint {path} cannot be written: {reason}; {left}: make room, then go on with --resume'
            ) from None

    # --- Ctrl-C and SIGTERM ---

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        loop = runner.train_loop
        # The last iteration of an epoch is followed by what ends the epoch: schedules, a checkpoint.
        if hasattr(loop, 'dataloader_iterator') or batch_idx + 1 < len(loop.dataloader):
            self._end(runner, self._asked(), dict(epoch=runner.epoch, iter=runner.iter + 1))

    def after_train_epoch(self, runner: Any) -> None:
        super().after_train_epoch(runner)
        if not hasattr(runner.train_loop, 'dataloader_iterator'):
            self._end(runner, self._asked(), dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        interruption = self._interruption
        if interruption and interruption.number:  # each process has its own number of images: none waits for another
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # which exchanged the weights for their average
                    hook.after_val_epoch(runner)
            self._end(runner, interruption.number, dict(epoch=runner.epoch, iter=runner.iter), together=False)

    def _asked(self) -> int:
        return self._interruption.agree() if self._interruption else 0

    def _end(self, runner: Any, number: int, meta: dict, together: bool = True) -> None:
        """Saves the state and ends the program, if a signal asked for it; ``together``: in all processes."""
        if not number:
            return
        if self._written_iter != meta['iter']:
            self._write(runner, INTERRUPTED, meta, by_epoch=False)
        if together:
            barrier()
        runner.logger.warning(f'stopped after iteration {meta["iter"]}, {self._written} holds its state; go on with:')
        runner.logger.warning(resume_command())
        raise SystemExit(128 + number)
