"""What a contributor is told agrees with what CI does."""

from __future__ import annotations

import re

from helpers import REPO


def text(path: str) -> str:
    return (REPO / path).read_text(encoding='utf-8')


def test_pre_commit_runs_the_same_ruff_as_make_lint():
    (pinned,) = re.findall(r'^ruff==.+$', text('requirements/tests.txt'), re.M)
    assert set(re.findall(r'ruff==[\d.]+', text('.pre-commit-config.yaml'))) == {pinned}


def test_the_pages_and_the_hosted_ci_name_targets_of_the_makefile():
    targets = set(re.findall(r'^([a-z-]+):', text('Makefile'), re.M))
    for path in ('CONTRIBUTING.md', '.github/workflows/ci.yml', '.github/PULL_REQUEST_TEMPLATE.md', '.ci/run'):
        named = set(re.findall(r'\bmake (?:-j )?([a-z][a-z-]*)', text(path)))
        assert named and named <= targets, path


def test_files_that_the_pages_name_exist():
    for path in ('CONTRIBUTING.md', 'docs/network.md', 'docs/design.md'):
        links = re.findall(r'\]\((?!http)([^)#]+)', text(path))
        named = re.findall(r'`((?:tests|docs|demo|tools|\.ci)/[\w./-]*)`', text(path))
        missing = [link for link in links if not (REPO / path).parent.joinpath(link).exists()]
        missing += [name for name in named if not (REPO / name).exists()]
        assert links and not missing, path
