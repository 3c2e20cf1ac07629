"""Writes checkpoints so that neither a kill nor a full disk leaves half of one, or none."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from ...registry import HOOKS
from ...utils import replace_file

BACKEND = 'mmefficientmod.whole_files'


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

    - A checkpoint is written under a temporary name, flushed and renamed, and so is ``last_checkpoint``: a file under
      its own name is whole.
    - An old checkpoint is removed after the new one is written, so that one is left at any moment.
    - Where it cannot be written, the run ends in one line that names the last one that is whole.

    ``backend_args`` and other addresses than local files are left to MMEngine.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type='mmefficientmod.SafeCheckpointHook', interval=1))
    """

    backend_args: dict | None

    def before_train(self, runner: Any) -> None:
        place = str(self.out_dir or runner.work_dir)
        if self.backend_args is None and self.file_client_args is None and '://' not in place:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        self._written: str | None = None

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        kept = self.keep_ckpt_ids if self.max_keep_ckpts > 0 else None
        outdated = []
        if kept is not None and step not in kept:
            while len(kept) >= self.max_keep_ckpts:
                outdated.append(kept.popleft())
            kept.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        with self._explaining(self.last_ckpt):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if not is_main_process():
                return
            replace_file(Path(runner.work_dir) / 'last_checkpoint', self.last_ckpt)
        self._written = self.last_ckpt
        for old in outdated:
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # as DeepSpeed and FSDP write them
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        with self._explaining(osp.join(str(self.out_dir), 'best_*.pth')):
            super()._save_best_checkpoint(runner, metrics)

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
