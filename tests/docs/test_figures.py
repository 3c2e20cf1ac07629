"""Published figures in the pages' tables are those of ``published.yml``, and links lead somewhere."""

from __future__ import annotations

import re

import pytest
import yaml

from helpers import REPO
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
    """The page has three columns named "published", after COCO's parameters, ADE20K's parameters and the cost."""
    lines = [line for line in read('docs/baselines.md').splitlines() if line.count('|') == 10]
    rows = [[cell.strip(' *') for cell in line.strip('|').split('|')] for line in lines]
    rows = [row for row in rows if row[0] in PUBLISHED['downstream']]
    assert len(rows) == 8
    for row in rows:
        expected = published('downstream', row[0], 'coco_params', 'ade_params', 'ade_flops')
        assert numbers(row[2], row[4], row[8]) == expected


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
