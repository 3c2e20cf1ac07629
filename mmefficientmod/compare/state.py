"""``state.json``: the commands that were started in a job's folder, and the steps that are done."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..utils import UserError, read_json, replace_file

NAME = 'state.json'


@dataclass
class State:
    """The content of the file."""

    name: str  # name of the job: in a comparison the name of the backbone
    done: list[str] = field(default_factory=list)  # steps that ended well, out of 'train' and 'test'
    error: str | None = None  # reason why the newest command failed
    # every command: step, command, directory, processes, started, ended, exit_code, started_by (the command of the
    # comparison)
    commands: list[dict] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Writes the file in one step."""
        replace_file(folder / NAME, json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, folder: Path, name: str) -> State:
        """The state of a job's folder; a new state if the file is missing.

        Raises:
            UserError: If the file cannot be used.
        """
        path = folder / NAME
        if not path.exists():
            return cls(name)
        try:
            state = cls(**read_json(path))
            if not all(isinstance(entry[key], str) for entry in state.commands for key in ('command', 'started')):
                raise TypeError('a command is not a text')
        except UserError as error:
            raise UserError(f'{error}: delete the folder') from None
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f'{path} is not of this tool ({type(error).__name__}): delete the folder') from error
        return state


def read_states(folders: Iterable[Path]) -> dict[str, State]:
    """The states in and below some folders by name, in the order in which the jobs began."""
    states = []
    for folder in folders:
        for path in folder.glob(f'**/{NAME}'):
            with contextlib.suppress(UserError):  # other programs have files of this name
                states.append(State.read(path.parent, ''))
    begun = [state for state in states if state.commands]
    return {state.name: state for state in sorted(begun, key=lambda state: state.commands[0]['started'])}
