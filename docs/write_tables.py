"""Writes the tables of figures in README.md and docs/ from the files that hold the figures.

A page says where a table stands: <!-- table: NAME -->, the table, <!-- end of table -->. Sources are published.yml, the
configs, the metafiles, EfficientMod's own settings, and docs/results.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS, DefaultScope

from mmefficientmod.measure.records import read_benchmark, records
from mmefficientmod.measure.tables import markdown_table, mode_table
from mmefficientmod.models import EfficientMod
from mmefficientmod.zoo.backbones import FURTHER, TABLE7
from mmefficientmod.zoo.published import published
from mmefficientmod.zoo.tasks import DETECTION, SEGMENTATION, Task

REPO = Path(__file__).resolve().parents[1]
COUNTED = REPO / 'docs/results/complexity.csv'
DEPLOYED = REPO / 'docs/results/deploy'
TABLE = re.compile(r'(?<=<!-- table: )(?P<name>[\w-]+) -->\n(?P<text>.*?)(?=<!-- end of table -->)', re.DOTALL)
ACCURACY = {'box AP': 'ap_box', 'mask AP': 'ap_mask', 'mIoU': 'miou'}  # column -> name in published.yml
OWN = [f'EfficientMod-{arch}' for arch in ('xxs', 'xs', 's', 's-Conv')]


def pages() -> list[Path]:
    return [REPO / 'README.md', *sorted(REPO.glob('docs/**/*.md'))]


def written(page: Path) -> str:
    """A page with its tables as the sources have them."""

    def table(match: re.Match) -> str:
        frame = pd.DataFrame(TABLES[match['name']]())
        caption = CAPTIONS[match['name']]() + '\n\n' if match['name'] in CAPTIONS else ''
        return f'{match["name"]} -->\n\n{caption}{markdown_table(frame)}\n\n'

    return TABLE.sub(table, page.read_text(encoding='utf-8'))


def number(value: float | None, digits: int = 1, unit: str = '') -> str:
    return '-' if value is None else f'{value:.{digits}f}{unit}'


# Sources -------------------------------------------------------------------------------------------------------------


def config(task: Task, name: str) -> str:
    """The place of a backbone's config below the repository."""
    return f'configs/{task.name}/{task.pattern.format(name.lower())}'


@lru_cache(maxsize=None)
def counted() -> dict[str, dict[str, float]]:
    """Backbone -> what :func:`count` found."""
    return pd.read_csv(COUNTED, index_col='backbone').to_dict('index')


def count() -> None:
    """Counts parameters and multiply-accumulates of all models again; takes a minute."""
    from mmcv.cnn import get_model_complexity_info

    from mmefficientmod.measure.complexity import measure_config
    from mmefficientmod.models.pointwise import Pointwise

    rows = []
    for name in TABLE7 + FURTHER:
        settings = Config.fromfile(REPO / config(DETECTION, name))
        with DefaultScope.overwrite_default_scope('mmdet'):
            params = [(p.numel(), p.requires_grad) for p in MODELS.build(settings.model).parameters()]
        cost = measure_config(REPO / config(SEGMENTATION, name))
        row = dict(backbone=name, coco_params=sum(size for size, _ in params))
        row.update(coco_trained=sum(size for size, trained in params if trained), ade_params=cost.params)
        row.update(ade_macs=cost.macs, ade_attention_macs=cost.attention_macs)
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = MODELS.build(Config.fromfile(REPO / config(SEGMENTATION, name)).model).to('meta').eval()
        for module in model.modules():
            if type(module) is Pointwise:  # this counter looks for exact types
                module.__class__ = Pointwise.__base__
        macs, _ = get_model_complexity_info(model, (3, 512, 512), print_per_layer_stat=False, as_strings=False)
        rows.append(dict(row, ade_mmcv_macs=int(macs)))
        print(rows[-1])
    pd.DataFrame(rows).to_csv(COUNTED, index=False)


def weights(name: str) -> str:
    """Where the pretrained weights of a backbone come from, and those for segmentation if they differ."""
    found = []
    for task in (DETECTION, SEGMENTATION):
        settings = Config.fromfile(REPO / config(task, name)).model.backbone.get('init_cfg') or {}
        place = settings.get('checkpoint', 'none: random weights')
        source, _, file = place.partition('://')
        if source in ('http', 'https'):
            found.append(f'[{file.partition("/")[0]}]({place})')
        elif place.startswith('checkpoints/'):
            found.append(f'[authors](checkpoints.md): `{Path(place).name}`')
        else:
            found.append(f'{source}: `{file}`' if file else place)
    return '; segmentation: '.join(dict.fromkeys(found))


def top1(name: str) -> float | None:
    """The paper's ImageNet accuracy, by Table 1 or 4."""
    if name in published('imagenet'):
        return published('imagenet')[name]['top1']
    return published('modulation_peers').get(name, [None])[0]


def accuracies(name: str) -> dict[str, str]:
    figures = published('downstream').get(name, {})
    return {column: number(figures.get(key)) for column, key in ACCURACY.items()}


def arch(name: str) -> str:
    return name[len('EfficientMod-') :].lower().replace('-', '_')


def channels(name: str) -> str:
    return ', '.join(map(str, EfficientMod.arch_settings[arch(name)]['embed_dims']))


# Tables --------------------------------------------------------------------------------------------------------------


def models() -> Iterator[dict]:
    released = published('released_checkpoints')['imagenet']
    for name in OWN:
        pair = published('distillation')[name]
        plain, distilled = (f'**{each:.1f}**' if each == released[name] else f'{each:.1f}' for each in pair)
        yield {
            'arch': f'`{arch(name)}`' + ('' if any(attention(name)) else ' (no attention)'),
            'channels at strides 4, 8, 16, 32': channels(name),
            'parameters': number(published('imagenet')[name]['params'], unit=' M'),
            'top-1': plain,
            'distilled': distilled,
            **accuracies(name),
            'configs': f'[COCO]({config(DETECTION, name)}), [ADE20K]({config(SEGMENTATION, name)})',
        }


def attention(name: str) -> tuple[int, ...]:
    return EfficientMod.arch_settings[arch(name)]['attn_depths']


def levels() -> Iterator[dict]:
    for name in OWN:
        yield {'arch': f'`{arch(name)}`', 'channels of the four levels, strides 4, 8, 16, 32': channels(name)}


def stages() -> Iterator[dict]:
    for name in OWN:
        settings = EfficientMod.arch_settings[arch(name)]
        yield {
            'arch': f'`{arch(name)}`',
            'channels': channels(name),
            'modulation blocks': ', '.join(map(str, settings['depths'])),
            'attention blocks': ', '.join(map(str, settings['attn_depths'])),
            'r': f'1, {settings["ratio"]}',
        }


def backbones() -> Iterator[dict]:
    for name in TABLE7 + FURTHER:
        own = counted()[name]
        yield {
            'backbone': f'`{name.lower()}`',
            'ImageNet top-1': number(top1(name)),
            **accuracies(name),
            'COCO (M)': number(own['coco_params'] / 1e6),
            'ADE20K (M)': number(own['ade_params'] / 1e6),
            'cost (G)': number(own['ade_macs'] / 1e9),
        }


def pretrained() -> Iterator[dict]:
    for name in TABLE7 + FURTHER:
        yield {'backbone': f'`{name.lower()}`', 'pretrained weights': weights(name)}


def table7_cost() -> Iterator[dict]:
    for name in TABLE7:
        own, known = counted()[name], published('downstream')[name]
        trained = '' if own['coco_trained'] == own['coco_params'] else f' ({own["coco_trained"] / 1e6:.2f} trained)'
        cost = own['ade_macs'] / 1e9
        yield {
            'backbone': name,
            'COCO': f'{own["coco_params"] / 1e6:.2f}{trained}',
            'COCO, published': number(known['coco_params']),
            'ADE20K': number(own['ade_params'] / 1e6, 3),
            'ADE20K, published': number(known['ade_params']),
            'cost': f'**{cost:.2f}**' if abs(cost / known['ade_flops'] - 1) > 0.02 else f'{cost:.2f}',
            'of it attention': number(own['ade_attention_macs'] / 1e9, 2),
            'MMCV': number(own['ade_mmcv_macs'] / 1e9, 2),
            'cost, published': number(known['ade_flops']),
        }


def classifiers() -> Iterator[dict]:
    models = {model['Name']: model for model in load(REPO / 'configs/classification/metafile.yml')['Models']}
    released = published('released_checkpoints')['imagenet']
    for name in OWN:
        plain, distilled = published('distillation')[name]
        note = '' if released[name] == distilled else f' (released: {released[name]:.1f}, not distilled)'
        model = models[f'{name.lower()}_8xb256_in1k']
        yield {
            'backbone': name,
            'parameters': f'{model["Metadata"]["Parameters"]:,}',
            'published top-1': number(plain),
            'distilled (the released file)': f'{distilled:.1f}{note}',
            'config': f'[{model["Name"]}](../{model["Config"]})',
        }


def peers() -> Iterator[dict]:
    for name, (accuracy, gpu, cpu, params, macs) in published('modulation_peers').items():
        yield peer(name, accuracy, gpu, cpu, params, macs)


def mbconv() -> Iterator[dict]:
    for label, name in {'MBConv, 12 M': 'hier-MBConv-12M', 'EfficientMod, 12 M': 'hier-EfficientMod-12M'}.items():
        params, macs, accuracy, gpu, cpu = published('mbconv_comparison')[name]
        yield peer(label, accuracy, gpu, cpu, params, macs)


def peer(name: str, accuracy: float, gpu: float, cpu: float, params: float, macs: float) -> dict:
    return {
        'network': name,
        'ImageNet top-1': number(accuracy),
        'GPU (ms)': number(gpu),
        'CPU (ms)': number(cpu),
        'parameters (M)': number(params),
        'multiply-accumulates (G)': number(macs),
    }


def camvid() -> Iterator[dict]:
    measured = pd.read_csv(REPO / 'docs/results/camvid/comparison.csv', index_col='backbone')
    for name, row in measured[measured['mIoU, measured'].notna()].iterrows():
        yield {
            'backbone': name,
            'mIoU on the 233 test images': number(row['mIoU, measured'], 2),
            'parameters (M)': number(row['parameters (M), measured']),
            'multiply-accumulates (G), 512 x 512': number(row['MACs (G), 512 x 512, measured']),
        }


def deployed(folder: Path, agreement: bool = False) -> Iterator[dict]:
    """A folder of docs/results: runs of tools/benchmark.py in one setting on one machine.

    Args:
        folder (Path): The folder.
        agreement (bool): How far the modes are off and how near the fastest one is to the machine's peak, in place of
            the times. Defaults to False.
    """
    runs = map(read_benchmark, sorted(folder.glob('*.json')))
    frames = [mode_table(results, max(content['peaks'].values())) for results, content in runs]
    frame = pd.concat(frames).fillna('-')
    own = frame['backbone'].isin(OWN)
    kept = [name for name in frame if name.startswith(('largest difference', 'share of peak')) == agreement]
    kept = [name for name in dict.fromkeys(['backbone', *kept]) if not name.startswith('reference')]
    frame = frame[kept]
    yield from pd.concat([frame[own], frame[~own]]).to_dict('records')


def conditions(contents: Sequence[Mapping]) -> str:
    """Threads, processor and date of runs of tools/benchmark.py in one setting, from the content of their files."""
    machine = contents[0]['machine']
    threads = 'one thread' if machine['threads'] == 1 else f'{machine["threads"]} threads'
    dates = [
        content['run']['date'] for content in contents if 'run' in content
    ]  # files of before 30 November have none
    date = f', {datetime.fromisoformat(max(dates)):%-d %B %Y}' if dates else ''
    return f'{threads}, {machine["cpu"]} with {machine["vector_extensions"].replace("AVX512", "AVX-512")}{date}'


def deployed_caption(folder: Path) -> str:
    """What the text above a table says: conditions, passes, commit, and how busy other processes were."""
    runs = [read_benchmark(file) for file in sorted(folder.glob('*.json'))]
    contents = [content for _, content in runs]
    passes = max(content['settings']['repeats'] for content in contents)
    line = f'{conditions(contents)}, {passes} passes'
    line = line[0].upper() + line[1:]
    commits = {content['run']['commit'] for content in contents if 'run' in content}
    loads = [each.get('other_load') for results, _ in runs for each in records(results)]
    busy = [load for load in loads if load is not None]
    if busy:
        line += f', commit {", ".join(sorted(commits))}. Other processes kept at most {max(busy):.2f} cores busy'
    return line + '.'


TABLES: dict[str, Callable[[], Iterator[dict]]] = {
    each.__name__.replace('_', '-'): each
    for each in (models, levels, stages, backbones, pretrained, table7_cost, classifiers)
}
TABLES.update(peers=peers, mbconv=mbconv, camvid=camvid)
TABLES.update({f'deployed-{folder.name}': partial(deployed, folder) for folder in DEPLOYED.iterdir()})
TABLES['agreement-backbone-512x512-2-threads'] = partial(deployed, DEPLOYED / 'backbone-512x512-2-threads', True)
CAPTIONS = {f'deployed-{folder.name}': partial(deployed_caption, folder) for folder in DEPLOYED.iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', action='store_true', help=f'first count all models again into {COUNTED.name}')
    if parser.parse_args().count:
        count()
    for page in pages():
        new = written(page)
        if new != page.read_text(encoding='utf-8'):
            page.write_text(new, encoding='utf-8')
            print(f'{page.relative_to(REPO)}: written')


if __name__ == '__main__':
    main()
