"""Makes a small data set, trains and tests both tasks on the CPU, and ends with metrics and images.

After a stop, the same command continues.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from rich.console import Console
from rich.table import Table

from mmefficientmod.compare.runs import Job, run_jobs
from mmefficientmod.compare.workdir import Run, find_runs
from mmefficientmod.utils import (
    HelpFormatter,
    UserError,
    check_output_folder,
    exit_in_one_line,
    parse_path,
    quiet_logs,
    run_tool,
)
from scenes import make_dataset

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / 'demo' / 'configs'
QUICK_DATA = dict(train_images=4, val_images=4, size=(128, 96))
NUM_IMAGES = 4  # number of scenes on the sheet
ZOOM = 3  # enlargement of the images on which boxes are drawn
SCORE_THR = 0.5  # lowest score of an object that is drawn
EPILOG = """\
examples:
  python demo/run.py
  python demo/run.py --quick --work-dir /tmp/demo"""

console = Console(highlight=False)
say = partial(console.print, soft_wrap=True)


@dataclass(frozen=True, eq=False)
class Task:
    """One of the two trainings."""

    name: str  # its folder
    title: str
    config: Path
    minutes: int  # time of training and test on two quiet cores
    quick: dict  # config options for --quick
    # MMEngine's name: (name in the table, factor to percent, aim in percent)
    metrics: dict[str, tuple[str, float, float | None]]


# In the order of training: the detector's backbone starts from the segmentor's.
SEGMENTATION, DETECTION = TASKS = (
    Task(
        name='segmentation',
        title='Semantic FPN',
        config=CONFIGS / 'fpn_efficientmod-xxs_1xb8-200_demo-192x256.py',
        minutes=2,
        quick={'train_cfg.max_iters': 2, 'train_dataloader.batch_size': 2},
        metrics={
            'mIoU': ('mIoU', 1, 60),
            'mAcc': ('mAcc', 1, None),
            'aAcc': ('aAcc', 1, None),
        },
    ),
    Task(
        name='detection',
        title='Mask R-CNN',
        config=CONFIGS / 'mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py',
        minutes=5,
        quick={'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 2},
        metrics={
            'coco/bbox_mAP': ('box AP', 100, None),
            'coco/bbox_mAP_50': ('box AP50', 100, None),
            'coco/segm_mAP': ('mask AP', 100, None),
            'coco/segm_mAP_50': ('mask AP50', 100, 50),
        },
    ),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=HelpFormatter)
    places = 'work_dirs/demo in the repository, with --quick work_dirs/demo-quick'
    parser.add_argument('--work-dir', type=parse_path, help=f'folder for all files (default: {places})')
    parser.add_argument('--quick', action='store_true', help='a few tiny steps, only to see that everything works')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    root = args.work_dir or REPO / 'work_dirs' / ('demo-quick' if args.quick else 'demo')
    with exit_in_one_line('stopped; the same command continues'), quiet_logs():  # the steps have their own logs
        check_output_folder(root, '--work-dir')
        run(root.resolve(), args.quick)


def run(root: Path, quick: bool = False) -> None:
    """Takes every step in `root` that is not done yet.

    Raises:
        UserError: If a step fails; the reason and the path of its log are printed before.
        OSError: If a file cannot be written.
    """
    start = time.monotonic()
    os.environ['DEMO_ROOT'] = str(root)  # the demo's configs read it
    say('[bold]1/4 Data:[/] generated scenes in the layouts of COCO and ADE20K (half a minute)')
    made = make_dataset(root / 'data', **(QUICK_DATA if quick else {}))
    say(f'    {root / "data"}{"" if made else ": there already"}')

    jobs = {}
    for number, task in enumerate(TASKS, 2):
        what = f'training and testing EfficientMod-xxs (about {task.minutes} minutes on two quiet cores)'
        say(f'[bold]{number}/4 {task.title}:[/] {what}')
        options = dict(task.quick if quick else {})
        if task is DETECTION:
            options['model.backbone.init_cfg.checkpoint'] = str(checkpoint(jobs[SEGMENTATION]))
        jobs[task] = make_job(task, root, options)
        (error,) = run_jobs([jobs[task]], console).values()
        if error:
            raise UserError(f'{task.title} failed, for the reason above')

    say('[bold]4/4 Images:[/] predictions and annotations side by side (half a minute)')
    sheet = root / 'predictions.png'
    checkpoints = {task: checkpoint(job) for task, job in jobs.items()}
    if is_newer(sheet, *checkpoints.values()):
        say(f'    {sheet}: there already')
    else:
        with open(root / 'images.log', 'w') as log, redirect_stdout(log), redirect_stderr(log):
            draw_sheet(sheet, checkpoints)
    say(metrics_table({task: test_metrics(job) for task, job in jobs.items()}))
    say(f'Images: {sheet}\nTime: {(time.monotonic() - start) / 60:.1f} minutes')


def make_job(task: Task, root: Path, options: dict) -> Job:
    """A task's training and test in its folder below `root`."""
    config = Config.fromfile(task.config)
    config.merge_from_dict(options)
    # On the CPU even if there is a GPU; waiting threads leave the cores to others.
    environment = dict(CUDA_VISIBLE_DEVICES='', OMP_WAIT_POLICY='PASSIVE')
    return Job(task.name, root / task.name, config, task.config.name, environment=environment)


def checkpoint(job: Job) -> Path:
    """The checkpoint at the end of a job's training."""
    return Path(job.trained)


def test_metrics(job: Job) -> dict[str, float]:
    """MMEngine's metrics of a job's newest complete test."""
    found = [Run(folder).test_metrics() for folder in find_runs(job.folder / 'test')]
    return next(metrics for metrics in reversed(found) if metrics)


def is_newer(target: Path, *sources: Path) -> bool:
    """Whether `target` exists and was made after all `sources`."""
    return target.exists() and all(target.stat().st_mtime >= source.stat().st_mtime for source in sources)


def metrics_table(metrics: dict[Task, dict[str, float]]) -> Table:
    """Reached metrics on the validation scenes and the aims, in percent."""
    table = Table('Model', 'Metric', title='Validation scenes, percent')
    table.add_column('Reached', justify='right')
    table.add_column('Aim', justify='right')
    for task, values in metrics.items():
        for i, (key, (name, factor, aim)) in enumerate(task.metrics.items()):
            table.add_row('' if i else task.title, name, f'{values[key] * factor:.1f}', f'{aim:.0f}' if aim else '')
        table.add_section()
    return table


@torch.no_grad()
def predict(task: Task, checkpoint: Path) -> tuple[list, dict]:
    """Predictions and truth of the first validation scenes, and the data set's classes and palette."""
    # Here, because their import prints many warnings, which go to the log of the images.
    from mmdet.apis import init_detector
    from mmseg.apis import init_model

    config = Config.fromfile(task.config)
    init = dict(mmdet=init_detector, mmseg=init_model)[config.default_scope]
    # It also sets the default scope, in which the data set is found.
    model = init(config, str(checkpoint), device='cpu')
    dataset = DATASETS.build(config.test_dataloader.dataset)
    samples = [model.test_step(pseudo_collate([dataset[i]]))[0] for i in range(NUM_IMAGES)]
    return samples, dataset.metainfo


def draw_objects(image: np.ndarray, instances: InstanceData, palette: list) -> np.ndarray:
    """Draws boxes and masks in their classes' colours on an image that is enlarged ZOOM times."""
    visualizer = Visualizer(image=mmcv.imrescale(image, float(ZOOM)))
    if len(instances):
        colors = [tuple(palette[label]) for label in instances.labels]
        masks = instances.masks
        if not isinstance(masks, torch.Tensor):
            masks = masks.to_tensor(torch.bool, 'cpu')
        masks = masks.repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2)
        visualizer.draw_binary_masks(masks, colors=colors, alphas=0.6)
        visualizer.draw_bboxes(instances.bboxes * ZOOM, edge_colors=colors, line_widths=1.5 * ZOOM)
    return visualizer.get_image()


def draw_sheet(path: Path, checkpoints: dict[Task, Path]) -> None:
    """Draws the first validation scenes with the truth and the predictions of both tasks on one sheet."""
    from mmseg.visualization import SegLocalVisualizer

    det_samples, det_meta = predict(DETECTION, checkpoints[DETECTION])
    seg_samples, seg_meta = predict(SEGMENTATION, checkpoints[SEGMENTATION])
    seg_visualizer = SegLocalVisualizer(alpha=0.7)
    seg_visualizer.dataset_meta = seg_meta

    figure = Figure(figsize=(20, 3.1 * NUM_IMAGES + 0.8), layout='constrained')
    axes = figure.subplots(NUM_IMAGES, 5, squeeze=False)
    titles = (
        'Scene',
        'Objects: truth',
        f'{DETECTION.title} (score > {SCORE_THR})',
        'Classes: truth',
        SEGMENTATION.title,
    )
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=18)
    for row, det_sample, seg_sample in zip(axes, det_samples, seg_samples):
        image = mmcv.imread(det_sample.img_path, channel_order='rgb')
        predicted = det_sample.pred_instances
        images = [image]
        for instances in (det_sample.gt_instances, predicted[predicted.scores > SCORE_THR]):
            images.append(draw_objects(image, instances, det_meta['palette']))
        for truth in (True, False):
            show = dict(draw_gt=truth, draw_pred=not truth)
            seg_visualizer.add_datasample('', image, seg_sample, with_labels=False, **show)
            images.append(seg_visualizer.get_image())
        for axis, image in zip(row, images):
            axis.imshow(image)
            axis.set_axis_off()
    colors = [(0, 0, 0), *seg_meta['palette']]
    names = ['unlabelled', *seg_meta['classes']]
    patches = [Patch(color=np.array(color) / 255, label=name) for color, name in zip(colors, names)]
    figure.legend(handles=patches, loc='outside lower center', ncols=len(patches), fontsize=16, frameon=False)
    figure.savefig(path, dpi=80)


if __name__ == '__main__':
    run_tool(main)
