"""Hooks of MkDocs: files outside of docs/ that pages link to become pages: links work on the site as on a forge."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Collection
from pathlib import Path

import nbformat
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

REPO = Path(__file__).resolve().parents[1]
NOTEBOOK = 'examples/swap_to_prediction.ipynb'
PAGES = {'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md', NOTEBOOK: 'notebook.md'}
LINK = re.compile(r'\]\((?![a-z]+:|#)([^)\s#]+)')
HIDDEN = '---\nsearch:\n  exclude: true\n---\n\n'

log = logging.getLogger('mkdocs.hooks.site')


def _page(path: str) -> str:
    """Where the site has a file or folder of the repository."""
    if path.startswith('docs/'):
        return path[len('docs/') :]
    return PAGES.get(path, f'files/{path}.md')


def _links(markdown: str, folder: str, kept: Collection[str] = ()) -> set[str]:
    """What a text of ``folder`` links to, as paths below the repository, without the targets ``kept``."""
    return {
        posixpath.normpath(posixpath.join(folder, target)) for target in LINK.findall(markdown) if target not in kept
    }


def _relinked(markdown: str, folder: str, page: str, kept: Collection[str] = ()) -> str:
    """A text of the repository's ``folder`` with its links as the site's ``page`` needs them, except those ``kept``."""

    def relink(match: re.Match) -> str:
        if match[1] in kept:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        return f']({posixpath.relpath(_page(path), posixpath.dirname(page) or ".")}'

    return LINK.sub(relink, markdown)


def _shown(path: str) -> str:
    """The page that shows a file, or what is in a folder."""
    source = REPO / path
    if source.is_dir():
        content = '\n'.join(f'- [{file.name}]({file.name}.md)' for file in sorted(source.glob('*.py')))
        content = content.replace('](', f']({source.name}/')
    else:
        language = {'.py': 'python', '.yml': 'yaml'}.get(source.suffix, 'text')
        content = f'````{language}\n{source.read_text(encoding="utf-8").rstrip()}\n````'
    return f'{HIDDEN}# `{path}`\n\n{content}\n'


def _text(path: str) -> tuple[str, dict[str, bytes]]:
    """A page outside of docs/ as Markdown, and the images that a notebook holds."""
    if not path.endswith('.ipynb'):
        return (REPO / path).read_text(encoding='utf-8'), {}
    text, found = MarkdownExporter().from_notebook_node(nbformat.read(REPO / path, as_version=4))
    return text, found['outputs']


def on_files(files, config):
    """Adds the pages of PAGES, a notebook's images, and a page for each other linked file outside of docs/."""
    linked = set()
    for file in files.documentation_pages():
        linked |= _links(file.content_string, posixpath.dirname(f'docs/{file.src_uri}'))
    for path, page in PAGES.items():
        text, images = _text(path)
        folder = posixpath.dirname(path)
        linked |= _links(text, folder, images)
        content = _relinked(text, folder, page, images)
        files.append(File.generated(config, page, content=content))
        for name, content in images.items():
            files.append(File.generated(config, name, content=content))
    for path in sorted(linked):
        if path.startswith('docs/') or path in PAGES:
            continue
        if not (REPO / path).exists():
            log.warning('a page links to %s, which does not exist', path)
            continue
        inside = [f'{path}/{file.name}' for file in (REPO / path).glob('*.py')]
        for shown in {path, *inside} - {file.src_uri[len('files/') : -len('.md')] for file in files}:
            files.append(File.generated(config, _page(shown), content=_shown(shown)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links out of docs/ to the pages that :func:`on_files` adds."""
    uri = page.file.src_uri
    if uri.startswith('files/') or uri in PAGES.values():
        return markdown
    return _relinked(markdown, posixpath.dirname(f'docs/{uri}'), uri)
