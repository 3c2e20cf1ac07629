"""Started by torch.distributed.run: compares gradients and statistics with those of one process and the whole batch."""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from mmengine.config import Config

from helpers import REPO, build_model, end_process
from mmefficientmod.training.cpu import CpuDistributedDataParallel

dist.init_process_group('gloo')
rank, processes = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
config = Config.fromfile(REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py')
sync = sys.argv[1]
config.model.decode_head.norm_cfg = dict(type=sync)
config.model.decode_head.dropout_ratio = 0
model = build_model(config).double().train()
alone = copy.deepcopy(model)
if sync == 'SyncBN':  # one process has no other to ask
    from mmengine.model import revert_sync_batchnorm

    alone = revert_sync_batchnorm(alone)

images = torch.randn(2 * processes, 3, 64, 96, dtype=torch.float64)
labels = torch.randint(0, 9, (2 * processes, 64, 96))


def loss(network: torch.nn.Module, part: slice) -> torch.Tensor:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for label in labels[part]:
        sample = SegDataSample(metainfo=dict(img_shape=(64, 96), pad_shape=(64, 96)))
        sample.gt_sem_seg = PixelData(data=label[None])
        samples.append(sample)
    return sum(value for name, value in network(images[part], samples, mode='loss').items() if 'loss' in name)


loss(alone, slice(None)).backward()
parallel = CpuDistributedDataParallel(model, broadcast_buffers=False)
loss(parallel, slice(2 * rank, 2 * rank + 2)).backward()

expected = dict(alone.named_parameters())
worst = max(
    ((value.grad - expected[name].grad).norm() / (expected[name].grad.norm() + 1e-12)).item()
    for name, value in model.named_parameters()
)
buffers = dict(alone.named_buffers())
drift = max((value - buffers[name]).abs().max().item() for name, value in model.named_buffers() if 'running' in name)
print(f'rank {rank}: gradients {worst:.1e} statistics {drift:.1e}', flush=True)
end_process(0 if worst < 1e-9 and drift < 1e-9 else 3)
