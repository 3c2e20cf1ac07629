"""Packages mmefficientmod together with what `mim` looks for under `mmefficientmod/.mim`."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import setuptools
from setuptools import find_packages, setup

try:
    from setuptools.command.editable_wheel import editable_wheel

    try:
        from setuptools.command.bdist_wheel import bdist_wheel
    except ImportError:  # setuptools below 70.1
        from wheel.bdist_wheel import bdist_wheel
    from wheel.wheelfile import WheelFile
except ImportError:
    raise SystemExit(
        'error: mmefficientmod is built with wheel and setuptools 70.1 or newer, and one of them is missing '
        f'(setuptools is {setuptools.__version__}): pip install "setuptools>=70.1,<80.9" wheel'
    ) from None

ROOT = Path(__file__).resolve().parent
version: dict = {}
exec((ROOT / 'mmefficientmod' / 'version.py').read_text(encoding='utf-8'), version)


def requirements(name: str) -> list:
    """The lines of requirements/NAME.txt without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.partition(' #')[0].strip() for line in lines if line and not line.startswith('#')]


class BdistWheel(bdist_wheel):
    """Adds a second .mim: onedl-mim 0.5.1 looks where the first file of RECORD is."""

    def write_wheelfile(self, wheelfile_base, *args, **kwargs):
        super().write_wheelfile(wheelfile_base, *args, **kwargs)
        mim = Path(self.bdist_dir, 'mmefficientmod', '.mim')
        if mim.is_dir():  # it is not in an editable wheel
            shutil.copytree(mim, Path(wheelfile_base, '.mim'))


class EditableWheel(editable_wheel):
    """Adds scripts that lead to the repository's tools: openmim 0.3.9 searches only site-packages."""

    def run(self):
        super().run()
        (path,) = Path(self.dist_dir).glob('*editable*.whl')
        with TemporaryDirectory() as content:
            with WheelFile(path) as wheel:
                wheel.extractall(content)
            folder = Path(content, 'mmefficientmod', '.mim', 'tools')
            folder.mkdir(parents=True)
            for tool in (ROOT / 'tools').glob('*.py'):
                command = f'[sys.executable, {str(tool)!r}, *sys.argv[1:]]'
                (folder / tool.name).write_text(
                    f'import os, sys\nos.execv(sys.executable, {command})\n', encoding='utf-8'
                )
            with WheelFile(path, 'w') as wheel:
                wheel.write_files(content)


setup(
    name='mmefficientmod',
    version=version['__version__'],
    description='EfficientMod backbones for MMDetection, MMSegmentation and MMPreTrain',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='mmefficientmod contributors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.8',
    # No MM distribution here, nor in an extra: each exists under two names with the same import
    # name, and naming one would install it over the other. requirements/openmmlab.txt and
    # requirements/onedl.txt list the proven sets. Nor torch: a newer one than MMCV was compiled for would break it.
    install_requires=['numpy'],
    extras_require={name: requirements(name) for name in ('data', 'docs', 'export', 'tools')},
    # Spelled out because setuptools then makes an editable install a plain path, in which the
    # package wins over the folder that EditableWheel adds; an import hook would come second.
    package_dir={'': '.'},
    packages=find_packages(include=['mmefficientmod', 'mmefficientmod.*']),
    # In the repository .mim holds links to configs, tools and model-index.yml; sdist and wheel
    # hold the files themselves.
    package_data={
        'mmefficientmod': [
            'py.typed',
            '**/*.yml',
            '**/*.html',
            '.mim/configs/**/*.py',
            '.mim/configs/**/*.yml',
            '.mim/model-index.yml',
            '.mim/tools/*.py',
            '.mim/tools/dist_*.sh',
            '.mim/tools/slurm_*.sh',
        ]
    },
    cmdclass={'bdist_wheel': BdistWheel, 'editable_wheel': EditableWheel},
)
