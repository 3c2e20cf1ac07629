"""Files in one step, JSON that users name, pages, and output folders that can be written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .errors import UserError, describe_error, first_line

# Names that images have. Whether one can be read is seen when it is: OpenCV's builds differ.
IMAGE_SUFFIXES = (
    *('.avif', '.bmp', '.gif', '.heic', '.heif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png'),
    *('.pnm', '.ppm', '.tif', '.tiff', '.webp'),
)


def is_utf8(path: Path) -> bool:
    """Whether a path is UTF-8; libraries in C++ do not take another, and OpenCV's end the process."""
    return str(path) == str(path).encode(errors='replace').decode()


def replace_file(path: Path, content: str | bytes | memoryview, durable: bool = True) -> None:
    """Writes a file in one step: a kill or a full disk leaves the old content or the new one, never half of it.

    Args:
        path (Path): The file.
        content (str, bytes or memoryview): Text is written as UTF-8.
        durable (bool): Wait until the disk has it, against a loss of power. Defaults to True.

    Raises:
        OSError: If it cannot be written. The old content is left.
    """
    draft = path.with_name(f'.{path.name}')
    try:
        with open(draft, 'wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if not isinstance(error, OSError):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk's error names no file


def read_json(path: Path) -> Any:
    """The content of a JSON file that a user names.

    Raises:
        UserError: If the file does not exist or holds something else. A pipe is refused unread: it may never end.
    """
    if not path.is_file():
        raise UserError(f'{path} ' + ('is not a regular file' if path.exists() else 'does not exist'))
    try:
        return json.loads(path.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not a JSON file that can be read ({describe_error(error)})') from None


def render_page(template: Path, **values: Any) -> str:
    """A page in HTML from a template of Jinja, which escapes the values."""
    import jinja2

    loader = jinja2.FileSystemLoader(template.parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template.name).render(**values)


def check_output_folder(path: Path, option: str = '--out') -> None:
    """Finds out before the work whether files can be written into a folder. It makes the folder and removes it again.

    Raises:
        UserError: If not, with the reason.
    """
    made: list[Path] = []
    folder = path
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or first_line(error)
        if isinstance(error, FileExistsError):  # a link that leads nowhere, too
            reason = f'{folder} is not a folder'
        raise UserError(f'{option} {path} cannot be written: {reason}. Name another folder') from None
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # another process has written into it
                folder.rmdir()
