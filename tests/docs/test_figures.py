"""Figures in the pages' tables are those of their files, and links lead somewhere."""

from __future__ import annotations

import re

import pytest
import yaml

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
        ('README.md', 'arch', 'ImageNet top-1', 'with distillation'),
        ('docs/classification.md', 'backbone', 'published top-1', 'distilled (the released file)'),
    ],
)
def test_imagenet(page: str, first: str, plain: str, distilled: str):
    rows = table(page, first, plain, distilled)
    assert len(rows) == 4
    for arch, *figures in rows:
        key = arch.split()[0].strip('`').replace('_conv', '-Conv')
        key = key if key.startswith('EfficientMod-') else f'EfficientMod-{key}'
        assert numbers(*figures)[:2] == PUBLISHED['distillation'][key]
        assert numbers(figures[0]) == published('imagenet', key, 'top1')


def test_downstream():
    rows = table('README.md', 'backbone', 'parameters COCO / ADE20K', 'box AP', 'mask AP', 'mIoU')
    known = [row for row in rows if row[0] in PUBLISHED['downstream']]
    assert len(rows) == 4 and len(known) == 2
    assert all(row[2:] == ['-'] * 3 for row in rows if row not in known)
    for backbone, *figures in known:
        columns = ('coco_params', 'ade_params', 'ap_box', 'ap_mask', 'miou')
        assert numbers(*figures) == published('downstream', backbone, *columns)


def test_parameters_and_cost():
    columns = ('COCO, published', 'ADE20K, published', 'cost, published')
    rows = table('docs/baselines.md', 'backbone', *columns)
    assert len(rows) == 8
    for backbone, *figures in rows:
        assert numbers(*figures) == published('downstream', backbone, 'coco_params', 'ade_params', 'ade_flops')


def test_every_backbone_is_in_the_table():
    rows = table('docs/baselines.md', 'backbone', 'ImageNet top-1', 'mIoU', 'pretrained weights')
    assert {row[0] for row in rows} == {path.stem for path in (REPO / 'configs/_base_/backbones').glob('*.py')}


# Written by docs/write_tables.py --------------------------------------------------------------------------------------

TYPED = {  # tables of figures that no file of the repository holds
    'docs/deploy.md': 'latencies of exported files, and their agreement',
    'docs/mm-tools.md': "what the MM libraries' counters say",
    'docs/speed.md': 'measured by tools/benchmark.py; its JSON was not kept',
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


def test_the_readme_sums_its_table_of_speed_up():
    _, deploy, compiled, step, kept = zip(*([float(cell) for cell in row[1:]] for row in speed_table()))
    said = ' '.join(read('README.md').split())
    for figures in (deploy, compiled, step, kept):
        assert f'{min(figures):.2f} to {max(figures):.2f}' in said


def speed_table() -> list[list[str]]:
    last = ('training step, eager / eager', 'activations kept')
    return table(
        'README.md',
        'backbone',
        *('eager / eager', 'deploy form, eager / eager', 'deploy form, compiled / compiled', *last),
    )


def test_ablations():
    rows = dict(table('docs/classification.md', 'rows', 'top-1'))
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
