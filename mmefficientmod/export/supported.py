"""Which whole models can be exported: the table that the forms ask, that ``--list`` prints and the docs show.

Needs neither torch nor an MM library. A part of a model is known if it is of a class named here, or of a subclass
without methods of its own besides its constructor.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..utils import UserError

RUNTIMES = 'ONNX Runtime, OpenVINO'
TRAINED = "after training, every prediction is the library's own on images of several sizes"
CLASSES = 'classifiers, not trained: each probability within 1e-4, after several test pipelines'
ONE_LABEL = 'one label per image'


@dataclass(frozen=True)
class Model:
    """A kind of model.

    Attributes:
        name (str): What people call it.
        library (str): MMDetection, MMSegmentation or MMPreTrain.
        form (str): Of the exportable forms: dense, two-stage, transformer, segmentor, mask-segmentor, classifier.
        heads (tuple[str, ...]): The classes of its head; empty for heads of any class.
        reading (str): How a dense head's maps become scores and boxes; a key of
            :data:`mmefficientmod.export.one_stage.READINGS`.
        model (str): The class of the model; empty for any whose prediction is its library's.
        note (str): What it must have.
        runtimes (str): With which the tests check its files.
        checked (str): How they do.
    """

    name: str
    library: str
    form: str
    heads: tuple[str, ...]
    reading: str = ''
    model: str = ''
    note: str = ''
    runtimes: str = RUNTIMES
    checked: str = TRAINED


def _dense(name: str, *heads: str, reading: str = 'coder', note: str = '') -> Model:
    return Model(name, 'MMDetection', 'dense', heads, reading, note=note)


MODELS = (
    Model('Faster R-CNN, Mask R-CNN', 'MMDetection', 'two-stage', ('StandardRoIHead',)),
    Model('Cascade R-CNN, Cascade Mask R-CNN', 'MMDetection', 'two-stage', ('CascadeRoIHead',)),
    _dense('RetinaNet', 'RetinaHead'),
    _dense('FCOS', 'FCOSHead'),
    _dense('ATSS', 'ATSSHead'),
    _dense('GFL', 'GFLHead', reading='distribution'),
    _dense('TOOD', 'TOODHead', reading='boxes', note='num_dcn=0'),
    _dense('CenterNet (update)', 'CenterNetUpdateHead'),
    _dense('RTMDet', 'RTMDetHead', 'RTMDetSepBNHead'),
    _dense('RTMDet-Ins', 'RTMDetInsHead', 'RTMDetInsSepBNHead', reading='masks'),
    _dense('YOLOX', 'YOLOXHead', reading='objectness'),
    Model('DETR', 'MMDetection', 'transformer', ('DETRHead',), model='DETR'),
    Model('Deformable DETR', 'MMDetection', 'transformer', ('DeformableDETRHead',), model='DeformableDETR'),
    Model('DINO', 'MMDetection', 'transformer', ('DINOHead',), model='DINO'),
    Model('Semantic FPN', 'MMSegmentation', 'segmentor', ('FPNHead',), model='EncoderDecoder'),
    Model('UPerNet', 'MMSegmentation', 'segmentor', ('UPerHead',), model='EncoderDecoder'),
    Model('SegFormer', 'MMSegmentation', 'segmentor', ('SegformerHead',), model='EncoderDecoder'),
    Model('DeepLabV3+', 'MMSegmentation', 'segmentor', ('DepthwiseSeparableASPPHead',), model='EncoderDecoder'),
    Model('PSPNet', 'MMSegmentation', 'segmentor', ('PSPHead',), model='EncoderDecoder'),
    Model('Mask2Former', 'MMSegmentation', 'mask-segmentor', ('Mask2FormerHead',), model='EncoderDecoder'),
    Model('classifiers', 'MMPreTrain', 'classifier', (), model='ImageClassifier', note=ONE_LABEL, checked=CLASSES),
)


def of_form(form: str) -> list[Model]:
    """The models of a form."""
    return [model for model in MODELS if model.form == form]


def describe() -> str:
    """The table as text, for ``--list``."""
    lines = ['--part model (the default) takes:']
    for library in dict.fromkeys(model.library for model in MODELS):
        lines.append(f'{library}:')
        for model in (model for model in MODELS if model.library == library):
            heads = ' or '.join(model.heads) or model.model
            lines.append(f'  {model.name:34} {heads}{model.note and f" ({model.note})"}')
    for how in dict.fromkeys((model.runtimes, model.checked) for model in MODELS):
        lines.append(f'The tests check with {how[0]}: {how[1]}.')
    lines.append("MMSegmentation's other heads are taken if they keep the prediction of BaseDecodeHead.")
    lines.append('NMS must be plain or, except for YOLOX, soft, within classes or among all.')
    lines.append('--part backbone takes the backbone of any model.')
    return '\n'.join(lines)


def matches(part: object, *names: str) -> bool:
    """Whether a part of a model is of one of these classes of its library, or works as one."""
    kind = type(part)
    if _is_library(kind):
        return kind.__name__ in names
    return not _overrides(kind) and any(base.__name__ in names and _is_library(base) for base in kind.__bases__)


def expect(part: object, place: str, *names: str) -> None:
    """Raises UserError for a part that is of none of these classes of its library."""
    if matches(part, *names):
        return
    found = 'a model without this part' if part is None else type(part).__name__
    wanted = ' or '.join(names) if len(names) < 4 else 'one that --list shows'
    raise UserError(
        f'{found} cannot be exported: the {place} must be {wanted}, without methods of its own; --part backbone '
        'exports the backbone of any model'
    )


def _is_library(kind: type) -> bool:
    return kind.__module__.partition('.')[0] in ('mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'mmengine', 'torch')


def _overrides(kind: type) -> bool:
    """Whether a class has methods of its own besides its constructor."""
    return any(callable(value) and not name.startswith('__') for name, value in vars(kind).items())
