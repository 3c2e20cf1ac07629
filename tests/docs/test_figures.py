"""Figures in the pages' tables are those of their files, and links lead somewhere."""

from __future__ import annotations

import re

import pytest
import yaml

import draw_plots
import write_tables
from helpers import REPO
from mmefficientmod.zoo.backbones import FURTHER, TABLE7, normalise
from pages import FENCE, PAGES, read, table

pytestmark = pytest.mark.ops  # in the full environment, as the other tests of the pages
PUBLISHED = yaml.safe_load((REPO / 'mmefficientmod/zoo/published.yml').read_text())


def published(name: str, backbone: str, *columns: str) -> list[float]:
    """Figures of a backbone by their column in a table of ``published.yml``."""
    return [PUBLISHED[name][backbone][PUBLISHED[name]['columns'].index(column)] for column in columns]


def numbers(*cells: str) -> list[float]:
    return [float(figure) for cell in cells for figure in re.findall(r'\d+\.\d+', cell)]


@pytest.mark.parametrize(
    'page, first, plain, distilled',
    [
        ('README.md', 'arch', 'top-1', 'distilled'),
        ('docs/model-zoo.md', 'backbone', 'published top-1', 'distilled (the released file)'),
    ],
)
def test_imagenet(page: str, first: str, plain: str, distilled: str):
    rows = table(page, first, plain, distilled)
    assert len(rows) == 4
    for arch, *figures in rows:
        key = full_name(arch)
        assert numbers(*figures)[:2] == PUBLISHED['distillation'][key]
        assert numbers(figures[0]) == published('imagenet', key, 'top1')


def full_name(arch: str) -> str:
    key = arch.split()[0].strip('`').replace('_conv', '-Conv')
    return key if key.startswith('EfficientMod-') else f'EfficientMod-{key}'


def test_downstream():
    rows = table('README.md', 'arch', 'box AP', 'mask AP', 'mIoU')
    known = [row for row in rows if full_name(row[0]) in PUBLISHED['downstream']]
    assert len(rows) == 4 and len(known) == 2
    assert all(row[1:] == ['-'] * 3 for row in rows if row not in known)
    for backbone, *figures in known:
        assert numbers(*figures) == published('downstream', full_name(backbone), 'ap_box', 'ap_mask', 'miou')


def test_parameters_and_cost():
    columns = ('COCO, published', 'ADE20K, published', 'cost, published')
    rows = table('docs/complexity.md', 'backbone', *columns)
    assert len(rows) == 8
    for backbone, *figures in rows:
        assert numbers(*figures) == published('downstream', backbone, 'coco_params', 'ade_params', 'ade_flops')


def test_every_backbone_is_in_the_table():
    for columns in (('ImageNet top-1', 'mIoU'), ('pretrained weights',)):
        rows = table('docs/model-zoo.md', 'backbone', *columns)
        assert {row[0] for row in rows} == {path.stem for path in (REPO / 'configs/_base_/backbones').glob('*.py')}


# Written by docs/write_tables.py --------------------------------------------------------------------------------------

TYPED = {  # tables of figures that no file of the repository holds
    'docs/complexity.md': "what the MM libraries' counters say",
}


@pytest.mark.parametrize('page', write_tables.pages(), ids=lambda page: page.name)
def test_tables_are_those_of_their_sources(page):
    assert page.read_text(encoding='utf-8') == write_tables.written(page), 'run: python docs/write_tables.py'


def test_every_table_that_can_be_written_is_in_a_page():
    named = re.findall(r'^<!-- table: ([\w-]+) -->$', ''.join(map(read, PAGES)), re.MULTILINE)
    assert sorted(named) == sorted(write_tables.TABLES)
    assert len(named) == len(re.findall('^<!-- end of table -->$', ''.join(map(read, PAGES)), re.MULTILINE))


@pytest.mark.parametrize('page', sorted(set(PAGES) - set(TYPED)))
def test_figures_of_backbones_are_not_typed(page):
    """A row that starts with a backbone's name and holds figures stands in a table that the tool writes."""
    own = write_tables.TABLE.sub('', read(page))
    rows = [line.strip('|').split('|') for line in own.splitlines() if line.startswith('|')]
    known = {normalise(name) for name in TABLE7 + FURTHER}
    assert not [row for row in rows if normalise(row[0]) in known and any(map(numbers, row[1:]))]


@pytest.mark.parametrize('name', draw_plots.PLOT)
def test_plots_show_the_numbers_of_their_files(name: str):
    _, values = draw_plots.PLOT[name]()
    svg = (draw_plots.PLOTS / f'{name}.svg').read_text(encoding='utf-8')
    assert f'numbers {draw_plots.digest(values)}' in svg, 'run: python docs/draw_plots.py'


def test_the_readme_sums_the_speed_up_over_the_reference():
    found = draw_plots.measured(draw_plots.BOTH_CORES)
    gains = found[found['name'].map(draw_plots.is_ours)].groupby('mode')['speed_up_over_reference']
    said = ' '.join(read('README.md').split())
    for mode in ('eager', 'deploy-compiled'):
        assert f'{gains.min()[mode]:.2f}x to {gains.max()[mode]:.2f}x' in said
    exported = gains.min()[['onnx', 'openvino']].min() - 1, gains.max()[['onnx', 'openvino']].max() - 1
    assert f'{100 * exported[0]:.0f} to {100 * exported[1]:.0f} %' in said
    found = draw_plots.measured(draw_plots.PRECISIONS)
    times = found[found['name'].map(draw_plots.is_ours)].pivot(index='name', columns='mode', values='median_ms')
    for mode, sentence in (('openvino-bf16', '{} of its float32 time'), ('openvino-int8', 'in INT8 {}')):
        shares = times[mode] / times['openvino']
        assert sentence.format(f'{shares.min():.2f} to {shares.max():.2f}') in said


def test_ablations():
    rows = dict(table('docs/ablations.md', 'rows', 'top-1'))
    (context,) = (name for name in rows if name.startswith('Table 5: f;'))
    (kernels,) = (name for name in rows if 'kernels' in name)
    for name, key in ((context, 'context_ablation'), (kernels, 'kernel_ablation')):
        keys = name.replace('Appendix L: kernels', '').replace('Table 5:', '').replace(' ', '').split(';')
        figures = [PUBLISHED[key][each] for each in keys]
        assert numbers(rows[name]) == [each[2] if isinstance(each, list) else each for each in figures]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as forges and MkDocs make them."""
    headings = re.findall(r'^#+ (.+)$', FENCE.sub('', read(page)), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page: str):
    wrong = []
    for link in re.findall(r'\]\((?!https?:|mailto:)([^)\s]+)', FENCE.sub('', read(page))):
        path, _, anchor = link.partition('#')
        target = (REPO / page).parent / path if path else REPO / page
        if not target.exists() or (anchor and anchor not in anchors(str(target.resolve().relative_to(REPO)))):
            wrong.append(link)
    assert not wrong
