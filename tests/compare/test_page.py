"""The HTML page stands alone, and its tables sort in a browser."""

from __future__ import annotations

import html.parser
import shutil
import subprocess

import pytest
from mmengine.config import Config

from helpers import make_run
from mmefficientmod.compare.report import html as render
from mmefficientmod.compare.table import compare
from mmefficientmod.zoo.backbones import task_backbones
from mmefficientmod.zoo.tasks import TASKS

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


class Page(html.parser.HTMLParser):
    """Collects what a page would fetch, and the rows of its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched, self.cells, self.attributes = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.fetched += [
            value
            for key, value in attrs.items()
            if key in ('src', 'href', 'xlink:href', 'data', 'action') and not value.startswith('#')
        ]
        if tag == 'body':
            self.attributes = attrs
        if tag == 'td':
            self.cells.append('')

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_page_fetches_nothing(report):
    text = (report / 'comparison.html').read_text()
    assert Page(text).fetched == [] and '@import' not in text and 'url(http' not in text and text.count('<svg') == 4


@pytest.mark.skipif(BROWSER is None, reason='needs Chromium or Chrome')
def test_page_sorts_in_a_browser(work_dir, report, tmp_path):
    """A real browser clicks on headings; rows without a figure stay last either way."""
    comparison = compare([work_dir])
    result, accuracy = comparison.results['resnet-18'], ('mIoU', 'measured')
    for name, value in (('low', -5.0), ('none', None), ('high', 99.5)):
        comparison.results[name] = type(result)(type(result.backbone)(name, name, result.backbone.config))
        comparison.table.loc[name] = comparison.table.loc['resnet-18']
        comparison.table.loc[name, accuracy], comparison.remarks[name] = value, ''
    script = """<script>
      const orders = [];
      for (const index of [1, 1, 0]) {
        document.querySelectorAll('th[data-sort]')[index].click();
        const rows = [...document.querySelectorAll('#comparison tbody tr')];
        orders.push(rows.map(row => row.cells[0].textContent).join(' '));
      }
      document.body.setAttribute('data-orders', orders.join('; '));
    </script></body>"""
    page = tmp_path / 'page.html'
    page.write_text(render(comparison, {}).replace('</body>', script))
    done = subprocess.run(
        [
            BROWSER,
            '--headless',
            '--no-sandbox',
            '--disable-gpu',
            '--no-first-run',
            '--disable-background-networking',
            '--disable-component-update',
            '--disable-sync',
            f'--user-data-dir={tmp_path / "profile"}',
            '--dump-dom',
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert Page(done.stdout).attributes['data-orders'] == (
        'low ResNet-18 high none; high ResNet-18 low none; high low none ResNet-18'
    ), done.stderr


def test_the_page_names_the_tables_and_machines_of_its_task(tmp_path):
    for task, key, metrics, source in (
        ('segmentation', 'resnet-18', '{"mIoU": 3}', 'Tables 7 and 11; their latency was measured on A100.'),
        (
            'classification',
            'deit-t',
            '{"accuracy/top1": 3}',
            'Tables 1 and 10; their latency was measured on P100, Xeo',
        ),
    ):
        config = Config.fromfile(task_backbones(TASKS[task])[key].config)
        make_run(tmp_path / task / key, '20260101_000000', config, metrics)
        assert source in render(compare([tmp_path / task]), {})
