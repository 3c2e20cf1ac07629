"""MMCV's operators on torch and torchvision give what the compiled ones give, forward and backward.

Where MMCV is compiled, both run on the same inputs. Elsewhere the compiled ones' results for some inputs come from
``tests/data/operators.npz``, which ``python tests/codebases/test_operators.py`` writes. Operators that MMCV compiled
for a GPU alone are compared with what they are defined as, in torch.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from types import ModuleType

import mmcv.ops
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops.deform_roi_pool import deform_roi_pool
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmcv.ops.psa_mask import psa_mask
from mmcv.ops.sync_bn import SyncBatchNormFunction
from torch import Tensor

from helpers import DATA
from mmefficientmod.codebases.operators import _operators
from mmefficientmod.measure.operators import operators_of, our_operators

pytestmark = pytest.mark.libraries
STORED = DATA / 'operators.npz'
STORED_CASES = 4  # of each operator
COMPILED = isinstance(sys.modules['mmcv._ext'].__loader__, ExtensionFileLoader)
with_compiled = pytest.mark.skipif(not COMPILED, reason="MMCV's compiled operators are not here")
draws = st.randoms(use_true_random=False)
often = settings(max_examples=60, deadline=None)


OURS = our_operators()


def results(call: Callable, inputs: list[Tensor], extension: ModuleType = OURS) -> list[Tensor]:
    """Outputs of a call, and the gradients of all inputs that take one."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    with operators_of(extension):
        outputs = call(*leaves)
        outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        if not outputs[0].requires_grad:
            return outputs
        numbers = np.random.RandomState(0).standard_normal(outputs[0].shape)
        found = torch.autograd.grad(outputs[0], leaves, torch.tensor(numbers).to(outputs[0]), allow_unused=True)
    return [tensor.detach() for tensor in (*outputs, *found) if tensor is not None]


def with_arguments(function: Callable, *arguments: object) -> Callable:
    """The function of the maps that remains; functions of ``torch.autograd`` take no keywords."""
    return lambda maps: function(maps, *arguments)


class Draw:
    """Numbers of one case; the tensors come from NumPy's generator, whose stream never changes."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.numbers = np.random.RandomState(source.randrange(2**32))
        self.dtype = self.one_of(torch.float32, torch.float64)

    def one_of(self, *choices: object) -> object:
        return choices[self.source.randrange(len(choices))]

    def size(self, low: int, high: int) -> int:
        return low + self.source.randrange(high - low + 1)

    def normal(self, *shape: int) -> Tensor:
        return torch.tensor(self.numbers.standard_normal(shape), dtype=self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.tensor(self.numbers.uniform(size=shape), dtype=self.dtype)

    def boxes(self, number: int, room: float = 40) -> Tensor:
        """Corners, partly outside of the room, some at whole numbers or without an area."""
        start = self.uniform(number, 2) * room - room / 8
        boxes = torch.cat((start, start + self.uniform(number, 2) * room * self.one_of(0.2, 0.7)), 1)
        boxes = boxes.round() if self.one_of(False, True) else boxes
        first = slice(self.one_of(0, 1))
        boxes[first, 2:] = boxes[first, :2]
        return boxes

    def regions(self, number: int, images: int, room: float = 40) -> Tensor:
        image = torch.tensor(self.numbers.randint(0, images, (number, 1)), dtype=self.dtype)
        return torch.cat((image, self.boxes(number, room)), 1)

    def scores(self, number: int) -> Tensor:
        """Numbers from 0 to 1, no two alike: MMCV's order of equal scores is not defined."""
        return torch.tensor((self.numbers.permutation(number) + 0.5) / max(number, 1), dtype=self.dtype)

    def maps(self) -> Tensor:
        return self.normal(self.size(1, 2), self.size(1, 3), self.size(1, 24), self.size(1, 24))


def roi_align(draw: Draw) -> tuple[Callable, list[Tensor]]:
    maps, size = draw.maps(), (draw.size(1, 7), draw.size(1, 7))
    regions = draw.regions(draw.size(0, 12), len(maps))
    options = (draw.one_of(0.25, 0.5, 1.0), draw.one_of(0, 1, 2), draw.one_of('avg', 'max'), draw.one_of(False, True))
    return lambda maps: mmcv.ops.roi_align(maps, regions, size, *options), [maps]


def nms(draw: Draw) -> tuple[Callable, list[Tensor]]:
    draw.dtype = torch.float32  # the compiled one takes no other
    number, threshold, offset = draw.size(0, 60), draw.one_of(0.1, 0.3, 0.5, 0.7), draw.one_of(0, 1)
    boxes, scores, least = draw.boxes(number), draw.scores(number), draw.one_of(0, 0.3)
    options = dict(score_threshold=least, max_num=draw.one_of(-1, 5))
    return lambda: mmcv.ops.nms(boxes, scores, threshold, offset, **options), []


def batched_nms(draw: Draw) -> tuple[Callable, list[Tensor]]:
    draw.dtype = torch.float32
    number = draw.size(1, 60)
    boxes, scores = draw.boxes(number), draw.scores(number)
    classes = torch.tensor(draw.numbers.randint(0, 4, number))
    kind = draw.one_of('nms', 'soft_nms')
    config = dict(type=kind, iou_threshold=draw.one_of(0.3, 0.5), split_thr=draw.one_of(10, 10000))
    agnostic = draw.one_of(False, True)
    return lambda: mmcv.ops.batched_nms(boxes, scores, classes, config, agnostic), []


def soft_nms(draw: Draw) -> tuple[Callable, list[Tensor]]:
    draw.dtype = torch.float32
    number, method = draw.size(0, 40), draw.one_of('naive', 'linear', 'gaussian')
    boxes, scores = draw.boxes(number), draw.scores(number)
    boxes[:, 2:] += 0.1  # without an area, the compiled one's scores become nan
    options = (draw.one_of(0.1, 0.3, 0.6), draw.one_of(0.3, 0.5), draw.one_of(1e-3, 0.2), method, draw.one_of(0, 1))
    return lambda: mmcv.ops.soft_nms(boxes, scores, *options), []


def nms_match(draw: Draw) -> tuple[Callable, list[Tensor]]:
    draw.dtype = torch.float32
    number, threshold = draw.size(1, 40), draw.one_of(0.1, 0.3, 0.5)
    boxes = torch.cat((draw.boxes(number), draw.scores(number)[:, None]), 1)

    def call() -> list[Tensor]:
        groups = mmcv.ops.nms_match(boxes, threshold)
        return [torch.cat(groups), torch.tensor([len(group) for group in groups])]

    return call, []


def bbox_overlaps(draw: Draw) -> tuple[Callable, list[Tensor]]:
    number, aligned = draw.size(0, 20), draw.one_of(False, True)
    first, second = draw.boxes(number), draw.boxes(number if aligned else draw.size(0, 20))
    options = dict(mode=draw.one_of('iou', 'iof'), aligned=aligned, offset=draw.one_of(0, 1))
    return lambda: mmcv.ops.bbox_overlaps(first, second, **options), []


def _convolution(draw: Draw) -> tuple[dict, dict[str, Tensor]]:
    groups, deform_groups = draw.one_of(1, 2), draw.one_of(1, 2)
    kernel = (draw.size(1, 3), draw.size(1, 3))
    lowest = dict(stride=1, padding=0, dilation=1)
    options = {name: (draw.size(low, 2), draw.size(low, 2)) for name, low in lowest.items()}
    batch, side = draw.size(1, 3), (draw.size(5, 12), draw.size(5, 12))
    height, width = (
        (side[i] + 2 * options['padding'][i] - options['dilation'][i] * (kernel[i] - 1) - 1) // options['stride'][i] + 1
        for i in (0, 1)
    )
    taps = deform_groups * kernel[0] * kernel[1]
    offset = draw.normal(batch, 2 * taps, height, width) * 2
    tensors = dict(
        input=draw.normal(batch, 4, *side),
        offset=offset.round() if draw.one_of(False, True) else offset,
        mask=draw.uniform(batch, taps, height, width),
        weight=draw.normal(6, 4 // groups, *kernel),
        bias=draw.normal(6),
    )
    return dict(options, groups=groups, deform_groups=deform_groups), tensors


def deform_conv2d(draw: Draw) -> tuple[Callable, list[Tensor]]:
    options, tensors = _convolution(draw)
    call = lambda *inputs: mmcv.ops.deform_conv2d(*inputs, *list(options.values()))  # noqa: E731
    return call, [tensors[name] for name in ('input', 'offset', 'weight')]


def modulated_deform_conv2d(draw: Draw) -> tuple[Callable, list[Tensor]]:
    options, tensors = _convolution(draw)
    bias = [tensors.pop('bias')]
    biased = draw.one_of(False, True)

    def call(*inputs: Tensor) -> Tensor:
        inputs = inputs if biased else (*inputs, None)
        return mmcv.ops.modulated_deform_conv2d(*inputs, *options.values())

    return call, [*tensors.values(), *(bias if biased else [])]


def psamask(draw: Draw) -> tuple[Callable, list[Tensor]]:
    window = (draw.size(1, 9), draw.size(1, 9))
    maps = draw.normal(draw.size(1, 2), window[0] * window[1], draw.size(1, 6), draw.size(1, 6))
    kind = draw.one_of(0, 1)
    return lambda maps: psa_mask(maps, kind, window), [maps]


CASES = [
    *(roi_align, nms, batched_nms, soft_nms, nms_match, bbox_overlaps),
    *(deform_conv2d, modulated_deform_conv2d, psamask),
]
EXACT = {nms_match, bbox_overlaps, psamask}
WITH_GRADIENTS = [roi_align, deform_conv2d, modulated_deform_conv2d, psamask]


def assert_alike(found: list[Tensor], wanted: list[Tensor], exact: bool = False) -> None:
    assert len(found) == len(wanted)
    for each, other in zip(found, wanted):
        other = other.to(each.dtype)
        size = float(other.double().nan_to_num().abs().max()) if other.numel() else 0.0
        share = 0.0 if exact else 2e-6 if each.dtype == torch.float32 else 1e-13
        torch.testing.assert_close(each, other, rtol=share, atol=share * size, equal_nan=True)


@with_compiled
@pytest.mark.parametrize('case', CASES, ids=lambda case: case.__name__)
@often
@given(source=draws)
def test_equal_to_the_compiled_operator(case, source):
    call, inputs = case(Draw(source))
    compiled = sys.modules['mmcv._ext']
    assert_alike(results(call, inputs), results(call, inputs, compiled), case in EXACT)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize('seed', range(STORED_CASES))
def test_equal_to_stored_results_of_the_compiled_operator(case, seed):
    with np.load(STORED) as stored:
        numbered = (f'{case.__name__}-{seed}-{i}' for i in itertools.count())
        wanted = [torch.tensor(stored[name]) for name in itertools.takewhile(lambda name: name in stored, numbered)]
    assert_alike(results(*case(Draw(random.Random(seed)))), wanted)


def store() -> None:
    """Writes the results of the compiled operators."""
    assert COMPILED
    stored = {}
    for case, seed in itertools.product(CASES, range(STORED_CASES)):
        found = results(*case(Draw(random.Random(seed))), sys.modules['mmcv._ext'])
        stored.update({f'{case.__name__}-{seed}-{i}': each.numpy() for i, each in enumerate(found)})
    np.savez_compressed(STORED, **stored)


def reference_roi_pool(maps: Tensor, regions: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """The maximum of all pixels that a bin touches, written out."""
    pooled = maps.new_zeros(len(regions), maps.shape[1], *size)
    for k, region in enumerate(regions):
        x, y = (region[1:3] * scale).tolist()
        width, height = ((region[3:] + 1 - region[1:3]) * scale).tolist()
        if width <= 0 or height <= 0:
            continue
        for i, j in itertools.product(range(size[0]), range(size[1])):
            rows, columns = (
                (max(int(np.floor(start + n * side / bins)), 0), max(int(np.ceil(start + (n + 1) * side / bins)), 0))
                for n, start, side, bins in ((i, y, height, size[0]), (j, x, width, size[1]))
            )
            pixels = maps[int(region[0]), :, slice(*rows), slice(*columns)]
            if pixels.numel():
                pooled[k, :, i, j] = pixels.amax((1, 2))
    return pooled


@often
@given(source=draws)
def test_roi_pool(source):
    draw = Draw(source)
    draw.dtype = torch.float64
    maps, size = draw.maps(), (draw.size(1, 5), draw.size(1, 5))
    regions, scale = draw.regions(draw.size(0, 8), len(maps)), draw.one_of(0.25, 0.5, 1.0)
    wanted = results(lambda maps: reference_roi_pool(maps, regions, size, scale) + 0 * maps.sum(), [maps])
    assert_alike(results(lambda maps: mmcv.ops.roi_pool(maps, regions, size, scale), [maps]), wanted)


@often
@given(source=draws)
def test_deform_roi_pool_is_roi_align_of_regions_that_are_moved(source):
    draw = Draw(source)
    draw.dtype = torch.float64
    maps, size, number = draw.maps(), (draw.size(1, 5), draw.size(1, 5)), draw.size(1, 8)
    regions, options = draw.regions(number, len(maps)), (draw.one_of(0.25, 0.5, 1.0), draw.one_of(0, 2))
    moves = draw.normal(number, 2)
    sides = regions[:, 3:] - regions[:, 1:3]
    moved = torch.cat((regions[:, :1], regions[:, 1:] + (0.1 * moves * sides).repeat(1, 2)), 1)
    offset = moves[..., None, None].expand(number, 2, *size).contiguous()
    for shifts, at in ((None, regions), (offset, moved)):
        if shifts is not None:  # rounding may change the number of samples in a bin
            options = (options[0], 2)
        found = results(with_arguments(deform_roi_pool, regions, shifts, size, *options), [maps])
        wanted = results(with_arguments(mmcv.ops.roi_align, at, size, *options, 'avg', True), [maps])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_gradients_of_the_shifts_of_deform_roi_pool():
    draw = Draw(random.Random(0))
    draw.dtype = torch.float64
    maps, regions = draw.normal(1, 2, 9, 9).requires_grad_(), torch.tensor([[0.0, 1, 2, 5, 6], [0, 3, 3, 7, 5]])
    regions = regions.to(maps)
    offset = draw.normal(2, 2, 2, 2).requires_grad_()
    with operators_of(OURS):
        pool = lambda maps, offset: deform_roi_pool(maps, regions, offset, (2, 2), 1.0, 2)  # noqa: E731
        assert torch.autograd.gradcheck(pool, (maps, offset))


@often
@given(source=draws)
def test_focal_losses(source):
    draw = Draw(source)
    draw.dtype = torch.float64
    number, classes = draw.size(1, 12), draw.size(1, 6)
    logits = draw.normal(number, classes) * draw.one_of(1, 4)
    target = torch.tensor(draw.numbers.randint(0, classes + 1, number))  # the last stands for the background
    gamma, alpha, weight = draw.one_of(0.5, 1.0, 2.0), draw.one_of(0.25, 0.6), draw.one_of(None, draw.uniform(classes))
    weights = torch.ones(classes + 1, dtype=draw.dtype) if weight is None else F.pad(weight, (0, 1), value=1)

    def sigmoid(logits: Tensor) -> Tensor:
        one_hot = F.one_hot(target, classes + 1)[:, :-1].to(logits)
        return torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha, gamma) * weights[target][:, None]

    found = results(lambda logits: mmcv.ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, 'none'), [logits])
    torch.testing.assert_close(found, results(sigmoid, [logits]), rtol=1e-9, atol=1e-9)
    target = target.clamp(max=classes - 1)

    def softmax(logits: Tensor) -> Tensor:
        p = logits.softmax(1).gather(1, target[:, None])[:, 0]
        return (-alpha * (1 - p) ** gamma * p.log() * weights[target]).mean()

    if classes > 1:  # the only one is certain, where the power of gamma has no derivative
        found = results(lambda logits: mmcv.ops.softmax_focal_loss(logits, target, gamma, alpha, weight), [logits])
        torch.testing.assert_close(found, results(softmax, [logits]), rtol=1e-9, atol=1e-9)


def test_focal_losses_of_certain_predictions_are_finite():
    logits, target = torch.tensor([[200.0, -200.0], [-200.0, 200.0]]), torch.tensor([0, 0])
    for loss in (mmcv.ops.sigmoid_focal_loss, mmcv.ops.softmax_focal_loss):
        value, grad = results(with_arguments(loss, target), [logits])
        assert value.isfinite() and value > 1 and grad.isfinite().all()


@often
@given(source=draws)
def test_carafe(source):
    draw = Draw(source)
    draw.dtype = torch.float64
    groups, kernel, scale = draw.one_of(1, 2), draw.one_of(1, 3, 5), draw.one_of(1, 2, 3)
    maps = draw.normal(draw.size(1, 2), 4, draw.size(1, 6), draw.size(1, 6))
    height, width = (side * scale for side in maps.shape[2:])
    masks = draw.normal(len(maps), groups * kernel**2, height, width)

    def wanted(maps: Tensor, masks: Tensor) -> Tensor:
        windows = F.unfold(maps, kernel, padding=kernel // 2).view(len(maps), -1, *maps.shape[2:])
        windows = F.interpolate(windows, scale_factor=scale).view(len(maps), groups, -1, kernel**2, height, width)
        return (windows * masks.view(len(maps), groups, 1, kernel**2, height, width)).sum(3).flatten(1, 2)

    found = results(lambda *inputs: mmcv.ops.carafe(*inputs, kernel, groups, scale), [maps, masks])
    assert_alike(found, results(wanted, [maps, masks]))
    naive = lambda *inputs: mmcv.ops.carafe_naive(*inputs, kernel, groups, scale).detach()  # noqa: E731
    assert_alike(results(naive, [maps, masks]), found[:1])  # MMCV's backward insists on a GPU


@often
@given(source=draws)
def test_masked_convolution(source):
    draw = Draw(source)
    draw.dtype = torch.float64
    kernel = draw.one_of(1, 3)
    maps = draw.normal(1, 2, draw.size(1, 8), draw.size(1, 8))
    weight, bias = draw.normal(3, 2, kernel, kernel), draw.normal(3)
    mask = (draw.uniform(1, *maps.shape[2:]) > draw.one_of(0, 0.5, 1)).to(maps)
    call = lambda: mmcv.ops.masked_conv2d(maps, mask, weight, bias, kernel // 2).detach()  # noqa: E731
    assert_alike(results(call, []), [F.conv2d(maps, weight, bias, padding=kernel // 2) * mask])


@often
@given(source=draws)
def test_deformable_attention(source):
    draw = Draw(source)
    draw.dtype = torch.float64
    shapes = torch.tensor([[draw.size(1, 5), draw.size(1, 5)] for _ in range(draw.size(1, 3))])
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    batch, heads, queries, points = draw.size(1, 2), draw.size(1, 2), draw.size(1, 4), draw.size(1, 3)
    value = draw.normal(batch, int(shapes.prod(1).sum()), heads, 4)
    places = draw.uniform(batch, queries, heads, len(shapes), points, 2) * 1.2 - 0.1
    weights = draw.uniform(*places.shape[:-1])
    found = results(
        lambda *inputs: MultiScaleDeformableAttnFunction.apply(inputs[0], shapes, starts, *inputs[1:], 64),
        [value, places, weights],
    )
    wanted = results(
        lambda *inputs: multi_scale_deformable_attn_pytorch(inputs[0], shapes, *inputs[1:]), [value, places, weights]
    )
    assert_alike(found, wanted)


@often
@given(source=draws)
def test_synchronized_batch_normalization(source):
    draw = Draw(source)
    draw.dtype = torch.float32
    maps = draw.normal(draw.size(2, 4), 3, draw.size(1, 5), draw.size(1, 5)) * 3 + 1
    weight, bias = draw.normal(3), draw.normal(3)
    means, variances, mode = torch.zeros(2, 3), torch.ones(2, 3), draw.one_of('N', 'default')

    def synchronized(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        statistics = (means[0], variances[0])
        return SyncBatchNormFunction.apply(maps, *statistics, weight, bias, 0.3, 1e-5, None, 1, mode)

    def plain(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(maps, means[1], variances[1], weight, bias, True, 0.3, 1e-5)

    found, wanted = (results(call, [maps, weight, bias]) for call in (synchronized, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close((means[0], variances[0]), (means[1], variances[1]))


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize('case', WITH_GRADIENTS, ids=lambda case: case.__name__)
def test_half_precision_is_computed_in_single_precision(case, dtype):
    """The compiled ones compute coordinates in half precision too, on a GPU; on a CPU most refuse it."""
    for seed in range(10):
        draw = Draw(random.Random(seed))
        call, inputs = case(draw)
        halves = [each.to(dtype) for each in inputs]
        wanted = results(call, [each.float() for each in halves])
        found = results(call, halves)
        assert {each.dtype for each in found} == {dtype}
        for each, other in zip(found, wanted):
            torch.testing.assert_close(each, other.to(dtype), rtol=2e-2, atol=2e-2 * float(other.abs().max() + 1))


def test_operators_under_autocast():
    draw = Draw(random.Random(0))
    draw.dtype = torch.float32
    torch.manual_seed(0)
    layer = mmcv.ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    torch.nn.init.normal_(layer.conv_offset.weight)
    maps, regions = draw.normal(1, 4, 8, 8), draw.regions(5, 1, 8)
    with operators_of(OURS), torch.autocast('cpu', torch.bfloat16):
        features = layer(maps)
        pooled = mmcv.ops.roi_align(features, regions.to(features), 3)
    assert features.dtype == pooled.dtype == torch.bfloat16
    with operators_of(OURS):
        wanted = layer(maps)
    torch.testing.assert_close(features.float(), wanted, rtol=0.05, atol=0.05 * float(wanted.detach().abs().max()))


def test_a_region_with_its_corners_the_wrong_way_round_is_refused():
    with operators_of(OURS), pytest.raises(RuntimeError, match='second corner'):
        mmcv.ops.roi_align(torch.rand(1, 1, 8, 8), torch.tensor([[0.0, 5, 5, 4, 6]]), 2)


def test_an_operator_that_is_left_out_says_its_name():
    with operators_of(OURS), pytest.raises(NotImplementedError, match='nms_rotated is an operator of MMCV'):
        mmcv.ops.nms_rotated(torch.rand(2, 5), torch.rand(2), 0.5)


@with_compiled
def test_names_and_versions_are_those_of_the_compiled_module():
    compiled = sys.modules['mmcv._ext']
    assert all(hasattr(compiled, name) for name in _operators())
    assert all(isinstance(module.get_compiler_version(), str) for module in (compiled, OURS))


if __name__ == '__main__':
    store()
