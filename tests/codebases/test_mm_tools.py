"""The MM libraries' own tools, each in a fresh process, on the demo's configs and on what MMEngine's training wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config

from helpers import LOADERS, ON_CONTINUATION, REPO, classifier_config
from interpreter import run_python
from mmefficientmod.codebases.packages import find_shipped
from scenes import make_dataset

DETECTION = str(REPO / 'demo/configs/mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py')
SEGMENTATION = str(REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py')
SHORT = [*LOADERS, 'train_dataloader.batch_size=2', 'train_cfg.val_interval=1', 'default_hooks.logger.interval=1']
BOXES_ALONE = ['model.roi_head.mask_head=None', 'model.roi_head.mask_roi_extractor=None', 'test_evaluator.metric=bbox']
TO_FILES = ('--not-show', '--output-dir')
WITH_EMA = "_base_ = '{base}'\ncustom_hooks = [dict(type='EMAHook', momentum=0.5)]\n"
IN_PYTHON = """
from mmdet.models import MaskRCNN
from mmengine.config import read_base

from mmefficientmod.models import EfficientMod

with read_base():
    from .plain import *

model.update(dict(type=MaskRCNN, backbone=dict(type=EfficientMod, arch='xxs')))
"""


def run(script: str, *args: object) -> str:
    """What a Python script prints; it must succeed."""
    done = run_python(script, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tool(codebase: str, name: str, *args: object) -> str:
    """What a script of an MM library prints."""
    return run(find_shipped(codebase, f'tools/{name}.py'), *args)


def infer(code: str, *args: object) -> dict:
    """The JSON that a program prints, which imports nothing of ours."""
    assert 'mmefficientmod' not in code
    return last_json(run('-c', code, *args))


def last_json(output: str) -> dict:
    return json.loads([line for line in output.splitlines() if line.startswith('{')][-1])


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with a small data set, in which the demo's configs look for it and the library's tools work."""
    root = tmp_path_factory.mktemp('work')
    make_dataset(root / 'data', train_images=4, val_images=2, size=(128, 96))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('DEMO_ROOT', str(root))
        patch.setenv('CUDA_VISIBLE_DEVICES', '')
        patch.setenv('MPLBACKEND', 'agg')
        patch.chdir(root)
        yield root


@pytest.fixture(scope='module')
def detector(root):
    """The work directory, checkpoint and log of a detector's training."""
    options = [*SHORT, 'model.backbone.init_cfg=None', 'train_cfg.max_epochs=1']
    log = run(
        f'{REPO}/tools/train.py', DETECTION, '--auto-scale-lr', '--work-dir', 'detector', '--cfg-options', *options
    )
    return root / 'detector', root / 'detector/epoch_1.pth', log


@pytest.fixture(scope='module')
def segmentor(root):
    """The work directory, checkpoint and log of a segmentor's training with averaged weights."""
    Path('ema.py').write_text(WITH_EMA.format(base=SEGMENTATION))
    options = [*SHORT, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    log = run(f'{REPO}/tools/train.py', 'ema.py', '--work-dir', 'segmentor', '--cfg-options', *options)
    return root / 'segmentor', root / 'segmentor/iter_2.pth', log


@pytest.fixture(scope='module')
def classifier(root):
    """The config and checkpoint of a classifier: two folders of pictures are its classes."""
    for split, name in (('train', 'left'), ('val', 'right')):
        folder = root / 'classes' / name
        folder.mkdir(parents=True)
        for path in (root / f'data/coco/{split}2017').glob('*.jpg'):
            (folder / path.name).write_bytes(path.read_bytes())
    settings = classifier_config(2, root / 'classes')
    settings.merge_from_dict({'train_cfg.max_epochs': 1, 'visualizer.type': 'UniversalVisualizer'})
    settings.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    config = root / 'classifier.py'
    settings.dump(config)
    tool('mmpretrain', 'train', config, '--work-dir', 'classifier', '--no-persistent-workers')
    return config, root / 'classifier/epoch_1.pth'


@pytest.fixture
def picture(root):
    return next((root / 'data/coco/val2017').glob('*.jpg'))


DET_INFERENCE = """
import json, sys
from mmdet.apis import DetInferencer
config, checkpoint, picture, out = sys.argv[1:]
infer = DetInferencer(config or None, checkpoint, device='cpu', show_progress=False)
(prediction,) = infer(picture, out_dir=out)['predictions']
print(json.dumps({key: len(value) for key, value in prediction.items()}))
"""
SEG_INFERENCE = """
import json, sys
from mmseg.apis import MMSegInferencer
config, checkpoint, picture, out = sys.argv[1:]
infer = MMSegInferencer(config or None, checkpoint, device='cpu')
prediction = infer(picture, out_dir=out, show=False)['predictions']
classes = infer.visualizer.dataset_meta['classes']
print(json.dumps(dict(shape=prediction.shape, last=int(prediction.max()), classes=classes)))
"""
CLS_INFERENCE = """
import json, sys
from mmpretrain import ImageClassificationInferencer
config, checkpoint, picture, out = sys.argv[1:]
(prediction,) = ImageClassificationInferencer(config, checkpoint, device='cpu')(picture, show_dir=out)
print('\\n' + json.dumps(dict(name=prediction['pred_class'], scores=prediction['pred_scores'].tolist())))
"""


@pytest.mark.ops
@pytest.mark.both_stacks
def test_det_inferencer(detector, picture):
    counts = infer(DET_INFERENCE, DETECTION, detector[1], picture, 'det')
    assert counts['bboxes'] > 0 and len(set(counts.values())) == 1 and {'labels', 'scores', 'masks'} < set(counts)
    assert Path('det/vis', picture.name).stat().st_size > 0


@pytest.mark.ops
@pytest.mark.both_stacks
def test_seg_inferencer(segmentor, picture):
    prediction = infer(SEG_INFERENCE, SEGMENTATION, segmentor[1], picture, 'seg')
    assert prediction['shape'] == [96, 128] and prediction['last'] < 9
    assert prediction['classes'][:2] == ['sky', 'grass']
    assert len(list(Path('seg/vis').iterdir())) == len(list(Path('seg/pred').iterdir())) == 1


@pytest.mark.both_stacks
def test_classification_inferencer(classifier, picture):
    prediction = infer(CLS_INFERENCE, *classifier, picture, 'cls')
    assert prediction['name'] in ('left', 'right') and sum(prediction['scores']) == pytest.approx(1)
    assert Path('cls', picture.stem + '.png').stat().st_size > 0


@pytest.mark.ops
def test_an_inferencer_takes_the_checkpoint_alone_where_the_plugin_is_imported(segmentor, picture):
    code = 'import mmefficientmod' + SEG_INFERENCE
    assert last_json(run('-c', code, '', segmentor[1], picture, 'alone'))['shape'] == [96, 128]


@pytest.mark.ops
@pytest.mark.both_stacks
def test_a_published_checkpoint_is_enough_for_an_inferencer(detector, picture):
    run(f'{REPO}/tools/convert_checkpoint.py', detector[1], 'published.pth')
    assert Path('published.pth').stat().st_size < 0.4 * detector[1].stat().st_size  # without the optimizer's state
    assert infer(DET_INFERENCE, '', 'published.pth', picture, 'published')['bboxes'] > 0


@pytest.mark.ops
@pytest.mark.both_stacks
@pytest.mark.parametrize(
    ('codebase', 'script'),
    [
        ('mmdet', 'model_converters/publish_model'),
        ('mmseg', 'misc/publish_model'),
        ('mmpretrain', 'model_converters/publish_model'),
    ],
)
def test_publish_model(codebase, script, segmentor, monkeypatch):
    import torch

    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # as the documentation says
    folder = Path(f'published_{codebase}')
    folder.mkdir()
    tool(codebase, script, segmentor[1], folder / 'model.pth')
    published = published_file(folder)
    weights = torch.load(published, weights_only=codebase != 'mmseg')['state_dict']  # mmseg's keeps the log history
    trained = torch.load(segmentor[1], weights_only=True)['state_dict']
    assert weights.keys() == trained.keys()
    assert all(weights[name].equal(value) for name, value in trained.items())


def published_file(folder: Path) -> Path:
    """The file that publish_model names after its hash, at times after its own end."""
    import time

    for _ in range(50):
        found = [path for path in folder.iterdir() if re.fullmatch(r'model(_\d+)?-[0-9a-f]{8}\.pth', path.name)]
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(list(folder.iterdir()))


@pytest.mark.ops
@pytest.mark.both_stacks
def test_segmentation_test_with_tta_and_show_dir(segmentor):
    options = [*LOADERS, 'default_hooks.visualization.interval=1']
    args = (SEGMENTATION, segmentor[1], '--work-dir', 'seg_tta', '--tta', '--show-dir', 'seg_shown')
    assert {'aAcc', 'mIoU', 'mAcc'} < metrics(run(f'{REPO}/tools/test.py', *args, '--cfg-options', *options)).keys()
    assert len(list(Path('seg_shown').rglob('*.png'))) == 2


@pytest.mark.ops
def test_detection_test_with_show_dir(detector):
    args = (DETECTION, detector[1], '--work-dir', 'det_test', '--show-dir', 'shown', '--cfg-options', *LOADERS)
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} < metrics(run(f'{REPO}/tools/test.py', *args)).keys()
    assert len(list(Path('det_test').rglob('shown/*.jpg'))) == 2


@pytest.mark.ops
@pytest.mark.both_stacks
def test_detection_test_with_tta_of_boxes(detector):
    args = (DETECTION, detector[1], '--work-dir', 'det_tta', '--tta', '--cfg-options', *LOADERS, *BOXES_ALONE)
    found = metrics(tool('mmdet', 'test', *args))
    assert 'coco/bbox_mAP' in found and 'coco/segm_mAP' not in found


@pytest.mark.ops
def test_averaged_weights_are_those_that_are_tested(segmentor):
    _, checkpoint, log = segmentor
    expected = metrics(log)['mIoU']
    for config in ('ema.py', SEGMENTATION):
        log = run(f'{REPO}/tools/test.py', config, checkpoint, '--work-dir', 'ema', '--cfg-options', *LOADERS)
        assert metrics(log)['mIoU'] == expected


@pytest.mark.ops
@pytest.mark.both_stacks
def test_the_inference_form_is_tested_and_inferred_without_an_option(segmentor, picture):
    run(f'{REPO}/tools/convert_checkpoint.py', segmentor[1], 'deployed.pth', '--deploy')
    args = (SEGMENTATION, 'deployed.pth', '--work-dir', 'deployed', '--cfg-options', *LOADERS)
    expected = metrics(segmentor[2])['mIoU']
    assert metrics(run(f'{REPO}/tools/test.py', *args))['mIoU'] == pytest.approx(expected, abs=0.05)
    assert metrics(tool('mmseg', 'test', *args))['mIoU'] == pytest.approx(expected, abs=0.05)
    assert infer(SEG_INFERENCE, SEGMENTATION, 'deployed.pth', picture, 'seg_deployed')['shape'] == [96, 128]


@pytest.mark.ops
def test_auto_scale_lr(detector):
    assert 'LR is set based on batch size of 8 and the current batch size is 2' in detector[2]


def metrics(log: str) -> dict[str, float]:
    """The metrics in the last line of MMEngine's log of a test or a validation."""
    line = [line for line in log.splitlines() if re.search(r'(Iter|Epoch)\((val|test)\)', line)][-1]
    return {name: float(value) for name, value in re.findall(r'([\w/]+): (-?[\d.]+)', line)}


@pytest.mark.parametrize('arch', ['xxs', 's_conv'])
def test_what_mmengine_counts(arch):
    """Convolutions and linear layers as ours, and the norms; not attention's matrix products."""
    import torch
    from mmengine.analysis import FlopAnalyzer

    from mmefficientmod.measure.complexity import measure_model
    from mmefficientmod.models import EfficientMod

    backbone = EfficientMod(arch=arch).eval()
    ours = measure_model(backbone, (224, 224))
    counted = FlopAnalyzer(backbone, torch.zeros(1, 3, 224, 224)).by_operator()
    assert counted['conv'] == ours.macs - ours.attention_macs
    assert set(counted) == {'conv', 'layer_norm'} and counted['layer_norm'] < 0.01 * ours.macs


@pytest.mark.ops
@pytest.mark.both_stacks
def test_get_flops_of_mmdetection(root):
    log = tool('mmdet', 'analysis_tools/get_flops', DETECTION, '--num-images', '1', '--cfg-options', *LOADERS)
    flops, params = re.search(r'Flops: ([\d.]+)G\nParams: ([\d.]+)M', log).groups()
    ours = complexity(DETECTION)
    assert float(params) == pytest.approx(ours['params'] / 1e6, rel=1e-3)
    assert float(flops) == pytest.approx((ours['macs'] - ours['attention_macs']) / 1e9, rel=0.01)


@pytest.mark.both_stacks
def test_get_flops_of_mmpretrain(classifier):
    log = tool('mmpretrain', 'analysis_tools/get_flops', classifier[0], '--shape', '192', '256')
    assert float(re.search(r'\nFlops: ([\d.]+)G\n', log)[1]) > 0.5


def complexity(config: str) -> dict:
    """Our count for a config in a process of its own, as one that is documented for MMSegmentation."""
    code = (
        'import json, sys, dataclasses; from mmefficientmod.measure.complexity import measure_config; '
        'print(json.dumps(dataclasses.asdict(measure_config(sys.argv[1], (192, 256)))))'
    )
    return last_json(run('-c', code, config))


@pytest.mark.ops
def test_browse_dataset_of_mmdetection(root):
    tool('mmdet', 'analysis_tools/browse_dataset', DETECTION, *TO_FILES, 'browsed')
    assert len(list(Path('browsed').glob('*.jpg'))) == 4


def test_browse_dataset_of_mmpretrain(classifier):
    tool(
        'mmpretrain', 'visualization/browse_dataset', classifier[0], *TO_FILES, 'browsed_classes', '--mode', 'original'
    )
    assert len(list(Path('browsed_classes').rglob('*.jpg'))) == 6


@pytest.mark.ops
def test_browsing_a_segmentation_data_set_as_documented(root):
    page = (REPO / 'docs/mm-tools.md').read_text()
    (code,) = re.findall(r'```python\n# browse.py\n(.*?)```', page, re.DOTALL)
    Path('browse.py').write_text(code)
    run('browse.py', SEGMENTATION, 'browsed_scenes')
    assert len(list(Path('browsed_scenes').glob('*.jpg'))) == 4


@pytest.mark.ops
def test_analyze_logs(detector, segmentor):
    pytest.importorskip('seaborn', reason='both analyze_logs need it')
    curve = ['plot_curve', *(['--style', 'default'] if ON_CONTINUATION else [])]
    for codebase, options, keys, folder in (
        ('mmdet', curve, ('loss', 'bbox_mAP'), detector[0]),
        ('mmseg', [], ('loss', 'mIoU'), segmentor[0]),
    ):
        (log,) = folder.glob('*/vis_data/scalars.json')
        tool(codebase, 'analysis_tools/analyze_logs', *options, log, '--out', f'{codebase}.png', '--keys', *keys)
        assert Path(f'{codebase}.png').stat().st_size > 1000


@pytest.mark.ops
def test_activation_maps(classifier, segmentor, picture):
    """A level's module is the target; what is drawn is right by test_class_activation_map_is_the_one_by_hand."""
    arguments = [*classifier, '--target-layers', 'backbone.levels.3', '--save-path', 'classifier_cam.png']
    tool('mmpretrain', 'visualization/vis_cam', picture, *arguments)
    arguments = [SEGMENTATION, segmentor[1], '--target-layers', 'backbone.levels[3]', '--category-index', '2']
    files = ['--device', 'cpu', '--out-file', 'prediction.png', '--cam-file', 'segmentor_cam.png']
    tool('mmseg', 'analysis_tools/visualization_cam', picture, *arguments, *files)
    for path in ('classifier_cam.png', 'segmentor_cam.png'):
        drawn = cv2.imread(path)
        plain = cv2.resize(cv2.imread(str(picture)), drawn.shape[1::-1])
        assert cv2.absdiff(drawn, plain).mean() > 10


@pytest.mark.ops
@pytest.mark.both_stacks
def test_a_config_in_python_names_the_class_itself(root):
    config = Config.fromfile(DETECTION)
    config.merge_from_dict({'model.backbone.init_cfg': None, 'train_cfg.max_epochs': 1})
    config.dump('plain.py')
    Path('in_python.py').write_text(IN_PYTHON)
    options = [*SHORT, 'val_dataloader=None', 'val_cfg=None', 'val_evaluator=None']
    log = run(f'{REPO}/tools/train.py', 'in_python.py', '--work-dir', 'in_python', '--cfg-options', *options)
    assert 'Epoch(train) [1][2/2]' in log and Path('in_python/epoch_1.pth').exists()


@pytest.mark.slow
@pytest.mark.ops
@pytest.mark.compiled
def test_compile_in_a_config(root):
    options = [*SHORT, 'train_cfg.max_iters=1', 'compile.backend=aot_eager']
    log = run(f'{REPO}/tools/train.py', SEGMENTATION, '--work-dir', 'compiled', '--cfg-options', *options)
    assert 'Model has been "compiled"' in log and 'Iter(val) [2/2]' in log


def test_the_installed_config_of_a_name_is_found():
    from mmefficientmod.codebases.config import find_config

    name = 'fpn_efficientmod-xxs_8xb4-40k_ade20k-512x512'
    assert Config.fromfile(find_config(name)).filename.endswith(f'configs/segmentation/{name}.py')
