"""The notebook in examples/ runs to its last cell and shows what its file shows; its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers import REPO

pytestmark = pytest.mark.ops  # in the full environment, as the other tests of the pages
NOTEBOOK = REPO / 'examples/swap_to_prediction.ipynb'


def kept() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']


def shown(cell: dict) -> list[str]:
    """What stands below a cell: kinds of pictures, and texts without figures."""
    texts = (''.join(output.get('text', '')) or ', '.join(sorted(output['data'])) for output in cell['outputs'])
    return [re.sub(r'\d+ %', 'N %', text) for text in texts]


def test_links_lead_somewhere():
    texts = [''.join(cell['source']) for cell in kept() if cell['cell_type'] == 'markdown']
    links = re.findall(r'\]\((?!http)([^)#]+)', ''.join(texts))
    assert links and not [link for link in links if not (NOTEBOOK.parent / link).exists()]


def test_the_file_holds_one_whole_run_and_is_light():
    counts = [cell['execution_count'] for cell in kept() if cell['cell_type'] == 'code']
    assert counts == list(range(1, len(counts) + 1))
    assert NOTEBOOK.stat().st_size < 150_000


@pytest.mark.slow
def test_it_runs_and_shows_what_the_file_shows(tmp_path: Path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    for folder in ('demo', 'configs'):
        (tmp_path / folder).symlink_to(REPO / folder)
    (tmp_path / 'examples').mkdir()
    monkeypatch.setenv('PYTHONPATH', str(REPO))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=1200, resources={'metadata': {'path': str(tmp_path / 'examples')}})
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [shown(cell) for cell in code] == [shown(cell) for cell in kept() if cell['cell_type'] == 'code']
    (miou,) = re.findall(r'(\d+) %', ''.join(output.get('text', '') for cell in code for output in cell.outputs))
    assert int(miou) > 15  # sky everywhere gives less than 11: a ninth
