"""Runs Python scripts in processes of their own that have torch and the MM libraries imported already.

Importing them takes several seconds in each process. Here one process per run of pytest imports them, without
mmefficientmod, and forks for each script. A script starts as with `python SCRIPT`: with its arguments, environment and
working directory, and it imports the package itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

BASE = ('torch', 'cv2', 'pandas', 'matplotlib.pyplot', 'mmengine.runner', 'mmcv', 'mmpretrain.apis')
WITH_OPERATORS = ('mmcv.ops', 'mmseg.apis', 'mmdet.apis')


def run_python(
    script: object,
    *args: object,
    cwd: object = None,
    env: dict[str, str] | None = None,
    timeout: float = 900,
    file_size: int | None = None,
) -> subprocess.CompletedProcess:
    """What `python SCRIPT ARGS` prints, and how it ends, as of ``subprocess.run(..., capture_output=True, text=True)``.

    Args:
        script (str or Path): A file, or ``-c`` with the code as the first of ``args``.
        cwd (str or Path, optional): Working directory. Defaults to the present one.
        env (dict, optional): Its whole environment. Defaults to the present one.
        timeout (float): Seconds after which the process is killed. Defaults to 900.
        file_size (int, optional): The most bytes that a file of the process can have: as real as a full disk.

    Raises:
        subprocess.TimeoutExpired: After ``timeout``.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, 'out'), Path(folder, 'err')
        argv = [str(script), *map(str, args)]
        environment = dict(os.environ if env is None else env)
        request = dict(argv=argv, cwd=str(cwd or os.getcwd()), env=environment, out=str(out), err=str(err))
        request['file_size'] = file_size
        server.stdin.write(json.dumps(request) + '\n')
        server.stdin.flush()
        pid = int(server.stdout.readline())
        killer = threading.Timer(timeout, _kill, [pid])
        killer.start()
        code = int(server.stdout.readline())
        late = not killer.is_alive()
        killer.cancel()
        stdout, stderr = out.read_text(errors='replace'), err.read_text(errors='replace')
    if late:
        raise subprocess.TimeoutExpired(argv, timeout, stdout, stderr)
    return subprocess.CompletedProcess(argv, code, stdout, stderr)


@functools.lru_cache(maxsize=None)
def _server() -> subprocess.Popen:
    folder = str(Path(__file__).parent)
    environment = {
        **os.environ,
        'PYTHONPATH': folder,
        'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', ''),
    }
    code = 'import interpreter; interpreter.serve()'
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, '-c', code], env=environment, stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.kill)
    return server


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def serve() -> None:
    """Reads requests from standard input; answers each with the number of its process, then with its exit code."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what a library prints while it is imported is no answer
    for names in (BASE, WITH_OPERATORS):
        with contextlib.suppress(ImportError):  # the rest is not installed, or cannot be imported without the package
            for name in names:
                importlib.import_module(name)
    # Without compiled operators, mmcv/_ext.py imports the package. A script imports its own copy, with the registries.
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmefficientmod']:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # MMEngine collects garbage for each data set that it builds
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            answers.close()
            _become(**json.loads(line))
        print(pid, file=answers, flush=True)
        status = os.waitpid(pid, 0)[1]
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        print(code, file=answers, flush=True)


def _become(argv: list[str], cwd: str, env: dict[str, str], out: str, err: str, file_size: int | None) -> None:
    """Turns this process into `python ARGV`, from its start to its end."""
    os.setsid()
    for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, mode, 1) for i, mode in enumerate('rww'))
    if file_size is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    import random

    import numpy as np

    random.seed()
    np.random.seed()
    sys.argv = argv
    is_code = argv[0] == '-c'
    first = '' if is_code else str(Path(argv[0]).resolve().parent)
    own = str(Path(__file__).parent)
    added = [part for part in env.get('PYTHONPATH', '').split(os.pathsep) if part]
    sys.path[:] = [first, *added, *(part for part in sys.path[1:] if part != own)]
    sys.modules.pop('interpreter', None)
    code = 0
    try:
        if is_code:
            sys.argv = ['-c', *argv[2:]]
            exec(compile(argv[1], '<string>', 'exec'), sys.modules['__main__'].__dict__)
        else:
            runpy.run_path(argv[0], run_name='__main__')
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)
