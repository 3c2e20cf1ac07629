"""`compare run` survives a kill and a failing row; `compare report` shows what was measured and nothing else."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config
from rich.console import Console

from helpers import REPO, file_size_limit, load_tool
from mmefficientmod.compare.plots import RED, styles
from mmefficientmod.compare.report import html as render
from mmefficientmod.compare.report import make_figures
from mmefficientmod.compare.results import collect
from mmefficientmod.compare.runs import Job, Launcher, run_jobs
from mmefficientmod.compare.settings import Settings, backbone_config
from mmefficientmod.compare.state import State
from mmefficientmod.compare.table import compare
from mmefficientmod.compare.workdir import Run, last_checkpoint, last_line, training_progress
from mmefficientmod.measure.records import Case, Measurement, records
from mmefficientmod.utils import UserError
from mmefficientmod.zoo.backbones import NAMES, task_backbones
from mmefficientmod.zoo.tasks import TASKS
from scenes import make_dataset

TOOL = str(REPO / 'tools' / 'compare.py')
ITERS = 8
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def fails(*argv) -> str:
    """The line that a command ends with."""
    with pytest.raises(SystemExit) as error:
        load_tool('compare').main([str(arg) for arg in argv])
    return str(error.value.code)


@pytest.fixture(scope='module')
def arguments(tmp_path_factory) -> list[str]:
    """A comparison on a few generated scenes. `depth` is an argument of ResNet alone: the other backbone fails."""
    root = tmp_path_factory.mktemp('a folder, with space')
    make_dataset(root / 'data', 4, 2, (96, 80))
    options = f'--iters {ITERS} --size 64 --batch-size 2 --workers 0 --seed 7 --pretrained none'
    return [
        'run',
        'segmentation',
        '--backbones',
        'EfficientMod-xxs',
        'resnet_18',
        '--work-dir',
        str(root / 'work'),
        '--data-root',
        str(root / 'data' / 'ade' / 'ADEChallengeData2016'),
        *options.split(),
        '--cfg-options',
        'model.backbone.depth=18',
    ]


@pytest.fixture(scope='module')
def killed(arguments) -> dict:
    """The state after everything was killed in the middle of the training."""
    folder = Path(arguments[arguments.index('--work-dir') + 1]) / 'resnet-18'
    process, training = start_training([*arguments, '--backbones', 'resnet-18'], folder)
    process.kill()
    os.killpg(training, signal.SIGKILL)
    process.wait()
    return json.loads((folder / 'state.json').read_text())


def start_training(arguments: list[str], folder: Path) -> tuple[subprocess.Popen, int]:
    """A `compare run` that has written its first checkpoint, and the process group of the training."""
    process = subprocess.Popen([sys.executable, TOOL, *arguments], stdout=subprocess.DEVNULL)
    checkpoint = folder / 'train' / 'last_checkpoint'
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert checkpoint.exists() and process.poll() is None, 'the training did not begin'
    return process, int(subprocess.check_output(['pgrep', '-P', str(process.pid)]))


@pytest.fixture(scope='module')
def work_dir(arguments, killed) -> Path:
    """The work directory after it was started again, with a second backbone."""
    assert fails(*arguments) == '1'
    return Path(arguments[arguments.index('--work-dir') + 1])


def state_of(work_dir: Path, backbone: str) -> dict:
    return json.loads((work_dir / backbone / 'state.json').read_text())


def test_killed_and_started_again(killed, work_dir):
    assert killed['done'] == [] and killed['commands'][-1]['ended'] is None
    state = state_of(work_dir, 'resnet-18')
    assert state['done'] == ['train', 'test'] and state['error'] is None
    train, resumed, test = state['commands']
    assert train == killed['commands'][0] and '--resume' not in train['command']
    assert resumed['command'] == f'{train["command"]} --resume' and resumed['exit_code'] == 0
    assert 'tools/test.py' in test['command'] and f'iter_{ITERS}.pth' in test['command']
    runs = sorted((work_dir / 'resnet-18' / 'train').glob('*/vis_data/scalars.json'))
    steps = [[json.loads(line)['step'] for line in run.read_text().splitlines() if '"loss"' in line] for run in runs]
    assert len(runs) == 2 and steps[0][0] == 1 and steps[1][0] > 1 and steps[1][-1] == ITERS  # not from the start
    assert set(steps[0] + steps[1]) == set(range(1, ITERS + 1))


def test_a_failing_backbone_is_recorded_and_the_rest_goes_on(work_dir):
    state = state_of(work_dir, 'efficientmod-xxs')
    assert state['done'] == [] and 'train.log' in state['error']
    assert "unexpected keyword argument 'depth'" in state['error']
    assert [entry['exit_code'] for entry in state['commands']] == [1]


def test_what_is_done_is_skipped(arguments, work_dir, capsys):
    before = state_of(work_dir, 'resnet-18')
    load_tool('compare').main([*arguments, '--backbones', 'resnet-18'])
    printed = capsys.readouterr().out
    assert 'resnet-18: train is done already' in printed and 'resnet-18: test is done already' in printed
    assert shlex.split(printed.splitlines()[-1])[-2:] == ['report', str(work_dir)]  # its name has spaces
    assert state_of(work_dir, 'resnet-18') == before


def test_other_settings_need_another_folder(arguments, work_dir, capsys):
    before = state_of(work_dir, 'resnet-18')
    assert fails(*arguments, '--backbones', 'resnet-18', '--seed', '8') == '1'
    assert 'holds a run of resnet-18 with other settings: name another --work-dir' in capsys.readouterr().err
    assert state_of(work_dir, 'resnet-18') == before
    assert Config.fromfile(next((work_dir / 'resnet-18').glob('fpn_*.py'))).randomness.seed == 7


def test_a_backbone_in_use_is_left_alone(arguments, work_dir):
    """What outlives a killed `compare run`, or a second one, holds the lock."""
    job = Job('resnet-18', work_dir / 'resnet-18', Config(), '')
    with job.lock(wait=False) as mine:
        holder = subprocess.Popen(['sleep', '60'], pass_fds=[mine])
    try:
        with job.lock(wait=False) as theirs:
            assert mine is not None and theirs is None
    finally:
        holder.kill()
        holder.wait()
    with job.lock(wait=False) as mine:
        assert mine is not None


def test_sigterm_leaves_nothing_behind(arguments, work_dir, tmp_path):
    """Not even data loading processes, which would hold the lock for some seconds."""
    more = ['--workers', '1', '--backbones', 'resnet-18', '--work-dir', str(tmp_path)]
    process, _ = start_training([*arguments, *more], tmp_path / 'resnet-18')
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    with Job('resnet-18', tmp_path / 'resnet-18', Config(), '').lock(wait=False) as lock:
        assert lock is not None


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def run_limited(arguments: list[str], size: int) -> subprocess.CompletedProcess:
    """`compare run` with a limit on the size of files."""
    return subprocess.run(
        [sys.executable, TOOL, *arguments],
        capture_output=True,
        text=True,
        preexec_fn=file_size_limit(size),
    )


@pytest.fixture
def moved(arguments, work_dir, tmp_path) -> tuple[list[str], Path]:
    """The finished backbone in another place, and the command that names it."""
    shutil.copytree(work_dir / 'resnet-18', tmp_path / 'moved' / 'resnet-18')
    return [*arguments, '--backbones', 'resnet-18', '--work-dir', str(tmp_path / 'moved')], tmp_path / 'moved'


def test_a_moved_folder_is_known_again(moved, capsys):
    arguments, folder = moved
    before = snapshot(folder)
    load_tool('compare').main(arguments)
    assert 'resnet-18: test is done already' in capsys.readouterr().out and snapshot(folder) == before


def test_a_moved_run_that_is_not_finished_goes_on_where_it_is(moved):
    """The last checkpoint's note names the old place."""
    arguments, folder = moved
    state = json.loads((folder / 'resnet-18' / 'state.json').read_text())
    (folder / 'resnet-18' / 'state.json').write_text(json.dumps({**state, 'done': ['train']}))
    load_tool('compare').main(arguments)
    test = state_of(folder, 'resnet-18')['commands'][-1]
    assert test['step'] == 'test' and f'{folder}/resnet-18/train/iter_{ITERS}.pth' in test['command']


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('state.json', '{"name": ', 'is not of this tool (JSONDecodeError): delete the folder'),
        ('state.json', '{"name": "resnet-18", "stages": []}', 'is not of this tool (TypeError): delete the folder'),
        ('state.json', '{"row": "resnet-18", "done": []}', 'is not of this tool (TypeError): delete the folder'),
        ('CONFIG', 'model = dict(', 'cannot be read (SyntaxError'),
        ('CONFIG', 'model = missing', 'cannot be read (NameError'),
    ],
)
def test_files_edited_by_hand_are_named_and_nothing_is_lost(file, content, message, moved, capsys):
    """An older version's ``state.json`` among them."""
    arguments, folder = moved
    path = next((folder / 'resnet-18').glob('fpn_*.py')) if file == 'CONFIG' else folder / 'resnet-18' / file
    path.write_text(content)
    before = snapshot(folder)
    assert fails(*arguments) == '1'
    line = next(line for line in capsys.readouterr().err.splitlines() if line.strip().startswith('resnet-18: '))
    assert message in line and str(path) in line
    assert snapshot(folder) == before


def test_a_full_disk_before_the_start(arguments, tmp_path):
    done = run_limited([*arguments, '--backbones', 'resnet-18', '--work-dir', str(tmp_path)], 4000)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert f"resnet-18: OSError: [Errno 27] File too large: '{tmp_path}/resnet-18/fpn_" in done.stderr
    assert [path.name for path in (tmp_path / 'resnet-18').iterdir()] == ['.lock']


def test_a_full_disk_beside_a_finished_run(moved):
    arguments, folder = moved
    before = snapshot(folder)
    assert run_limited(arguments, 4000).returncode == 1
    assert snapshot(folder) == before


@pytest.mark.parametrize('command', ['run', 'report'])
def test_a_folder_that_cannot_be_written(command, arguments, work_dir, tmp_path, capsys):
    (tmp_path / 'file').touch()
    place = str(tmp_path / 'file' / 'below')
    if command == 'run':
        assert fails(*arguments, '--work-dir', place) == '1'
        assert 'resnet-18: NotADirectoryError' in capsys.readouterr().err
    else:
        line = fails('report', work_dir, '--out', place)
        assert line.startswith('error: [Errno 20] Not a directory')


@pytest.fixture(scope='module')
def report(work_dir, tmp_path_factory) -> Path:
    """The report, with latency from a real benchmark."""
    out = tmp_path_factory.mktemp('report')
    options = '--backbones resnet-18 --parts segmentor --sizes 64 512 --repeats 2 --warmup 1 --out'
    load_tool('benchmark').main([*options.split(), str(out)])
    load_tool('compare').main(['report', str(work_dir), '--benchmark', str(out / 'benchmark.json'), '--out', str(out)])
    return out


def test_report_shows_what_was_measured(report, work_dir):
    with open(report / 'comparison.csv') as file:
        rows = list(csv.DictReader(file))
    row = rows[0]
    (metrics,) = (work_dir / 'resnet-18' / 'test').glob('*/*.json')
    miou = json.loads(metrics.read_text())['mIoU']
    assert row['backbone'] == 'ResNet-18' and float(row['mIoU, measured']) == pytest.approx(miou, abs=1e-3)
    assert row['mIoU, published'] == '32.9' and float(row['mIoU, difference']) == pytest.approx(miou - 32.9, abs=1e-3)
    assert row['parameters (M), published'] == '15.5' and abs(float(row['parameters (M), difference'])) < 0.1
    assert row['MACs (G), 512 x 512, published'] == '32.2'
    benchmark = json.loads((report / 'benchmark.json').read_text())['measurements']
    small, published = (f'ms, {side} x {side}, batch 1, fp32, eager' for side in (64, 512))
    assert float(row[f'{small}, measured']) == pytest.approx(benchmark[0]['median_ms'], abs=1e-3)
    assert row[f'{published}, published, A100'] == '8.5' and f'{small}, published, A100' not in row
    assert row['remark'] == f'test of iter_{ITERS}.pth; trained {ITERS}/{ITERS} iterations'
    others = {row['backbone']: row for row in rows[1:]}
    assert len(others) == 17 and all(row['mIoU, measured'] == '' for row in others.values())
    assert others['EfficientMod-xxs']['remark'].startswith('no result: train ended with exit code 1')
    assert others['EfficientMod-s']['remark'] == 'no result: not run'


def test_report_needs_neither_torch_nor_locks(report, work_dir, tmp_path):
    """The same figures, but for those that take building the model."""
    block = 'import runpy, sys; sys.modules.update(torch=None, fcntl=None, resource=None); sys.argv = sys.argv[1:]'
    code = f"{block}; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [TOOL, 'report', work_dir, '--benchmark', report / 'benchmark.json', '--out', tmp_path]
    done = subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0 and 'note: No parameters and cost of ResNet-18: ' in done.stderr, done.stderr
    with open(tmp_path / 'comparison.csv') as here, open(report / 'comparison.csv') as there:
        without, complete = (next(csv.DictReader(file)) for file in (here, there))
    differing = {name for name in complete if complete[name] != without[name]}
    assert {name.partition(',')[0] for name in differing} == {'parameters (M)', 'MACs (G)'}


def test_report_says_how_far_it_is_from_the_published_setting(report):
    text = (report / 'comparison.md').read_text()
    assert (
        'This is not the published setting: 2 validation images instead of 2000; '
        'schedule 8 iterations instead of 40000 iterations; '
        'batch 2 instead of 32; training size 64 x 64 instead of 512 x 512; '
        'test size 64 x 256 instead of 512 x 2048; '
        'weights random instead of pretrained.'
    ) in text
    assert '- seed: 7' in text and 'tools/train.py' in text
    assert '- PoolFormer-S12, EfficientMod-s-Conv' in text and ': not run' in text


def test_plots(report):
    for name in ('accuracy-parameters', 'accuracy-cost', 'accuracy-latency', 'training'):
        assert (report / f'{name}.png').stat().st_size > 10000 and '<svg' in (report / f'{name}.svg').read_text()
        assert f'({name}.png)' in (report / 'comparison.md').read_text()


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


def test_report_of_results_that_do_not_belong_together(work_dir, tmp_path):
    shutil.copytree(work_dir / 'resnet-18', tmp_path / 'elsewhere')
    message = fails('report', work_dir, tmp_path / 'elsewhere')
    assert message.startswith('error: resnet-18 has train results in ') and message.endswith('name the one to report')

    other = tmp_path / 'efficientmod-s'  # the same results, as of another backbone on another data set
    shutil.move(str(tmp_path / 'elsewhere'), str(other))
    for path in list(other.rglob('*.py')):
        text = path.read_text().replace("ADEChallengeData2016'", "Other'").replace("'resnet-18'", "'efficientmod-s'")
        path.with_name(path.name.replace('resnet-18', 'efficientmod-s')).write_text(text)
        if 'resnet-18' in path.name:
            path.unlink()
    message = fails('report', work_dir, other)
    assert message.startswith('error: results of different data sets: ') and '/Other' in message
    assert 'resnet-18 on ADE20KDataset' in message and 'efficientmod-s on ADE20KDataset' in message

    for path in list(other.rglob('*.py')):
        path.write_text(path.read_text().replace("default_scope = 'mmseg'", "default_scope = 'mmdet'"))
    assert fails('report', work_dir, other) == (
        'error: these are results of detection and of segmentation: report one task at a time'
    )


def test_report_without_results(work_dir, tmp_path):
    assert fails('report', tmp_path / 'none') == f'error: {tmp_path / "none"} does not exist'
    assert fails('report', tmp_path) == f'error: {tmp_path} holds no work directory of MMEngine'
    begun = tmp_path / 'work' / 'resnet-18' / 'train' / '20260101_000000' / 'vis_data'
    begun.mkdir(parents=True)
    source = next((work_dir / 'resnet-18' / 'train').glob('*/vis_data/config.py'))
    shutil.copy(source, begun)
    (begun / 'scalars.json').write_text('{"loss": 3.5, "step": 1}\n{"loss": 3.')  # cut off by a kill
    assert fails('report', tmp_path) == (
        'error: no backbone has metrics yet: resnet-18 began, but nothing was validated or tested'
    )
    assert not (tmp_path / 'report').exists()


def test_an_unfinished_backbone_is_called_so(work_dir, tmp_path):
    """The resumed run without its last iteration."""
    resumed = sorted((work_dir / 'resnet-18' / 'train').glob('*/vis_data'))[-1].parent
    copy = tmp_path / 'resnet-18' / 'train' / resumed.name
    shutil.copytree(resumed, copy)
    shutil.copy(next((work_dir / 'resnet-18' / 'train').glob('*.py')), copy.parent)
    scalars = copy / 'vis_data' / 'scalars.json'
    lines = scalars.read_text().splitlines(keepends=True)
    scalars.write_text(''.join(line for line in lines if json.loads(line)['step'] < ITERS))
    comparison = compare([tmp_path])
    assert not comparison.comparable
    assert comparison.remarks['resnet-18'] == (
        f'validation during training, at iteration {ITERS - 1}; trained {ITERS - 1}/{ITERS} iterations'
    )
    assert f'Not at the end of their training: ResNet-18 ({ITERS - 1}/{ITERS} iterations).' in comparison.warnings


def make_run(folder: Path, name: str, config: Config, metrics: str, log: str = '') -> None:
    """What MMEngine leaves of a run: a training if its metrics have steps, else a test."""
    run = folder / name
    (run / 'vis_data').mkdir(parents=True)
    config.dump(run / 'vis_data' / 'config.py')
    path = run / 'vis_data' / 'scalars.json' if '"step"' in metrics else run / f'{name}.json'
    path.write_text(metrics)
    (run / f'{name}.log').write_text(log)


def test_a_backbone_in_the_published_setting_is_comparable(tmp_path):
    """2000 images that three processes fill up to 2001 are the published ones; of two trainings the new one counts."""
    config, folder = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config), tmp_path / 'resnet-18'
    config.train_dataloader.batch_size = 8
    log = 'GPU number: 4\n'
    make_run(folder, '20260101_000000', config, '{"loss": 9, "step": 50}\n{"mIoU": 1, "step": 40000}\n', log)
    make_run(folder, '20260102_000000', config, '{"loss": 2, "step": 100}\n{"mIoU": 32, "step": 40000}\n', log)
    result = collect([tmp_path])[1]['resnet-18']
    assert result.metrics == {'mIoU': 32} and list(result.losses) == [100] and result.split == 'val'
    config.load_from = 'x/iter_40000.pth'
    make_run(folder, '20260103_000000', config, '{"mIoU": 33.4}', 'GPU number: 3\nIter(test) [667/667]  mIoU: 33.4')
    comparison = compare([tmp_path])
    assert comparison.warnings == [] and comparison.comparable == {'resnet-18'}
    assert comparison.table.loc['resnet-18', ('mIoU', 'difference')] == pytest.approx(0.5)
    page = render(comparison, {})
    assert 'class="difference better" data-value="0.5' in page and 'class="difference worse"' not in page


def test_a_test_of_an_intermediate_checkpoint_is_not_the_end(tmp_path):
    """Although the training went on to its end; a released checkpoint, which has no step in its name, is one."""
    config, folder = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config), tmp_path / 'resnet-18'
    make_run(folder, '20260101_000000', config, '{"loss": 2, "step": 100}\n{"mIoU": 32, "step": 40000}\n')
    for checkpoint, expected in (('iter_20000.pth', 'ResNet-18 (test of iter_20000.pth).'), ('resnet_18.pth', None)):
        config.load_from = f'x/{checkpoint}'
        make_run(folder / 'test', '20260102_000000', config, '{"mIoU": 33}')
        warnings = compare([tmp_path]).warnings
        said = [line.partition(': ')[2] for line in warnings if line.startswith('Not at the end of their training')]
        assert said == ([expected] if expected else [])
        shutil.rmtree(folder / 'test')


def test_a_training_continued_by_another_number_of_processes(tmp_path):
    """It is refused, and a report of one says it."""
    config, folder = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config), tmp_path / 'resnet-18'
    job = Job('resnet-18', folder, config, 'config.py', launcher=Launcher('pytorch', 4))
    state = State('resnet-18', commands=[dict(step='train', processes=8, command='', started='')])
    (folder / 'train').mkdir(parents=True)
    state.write(folder)
    job.prepare()  # nothing of the training is left
    (folder / 'train' / 'iter_4000.pth').touch()
    with pytest.raises(UserError, match='holds a training with 8 processes, not 4: continue it with --gpus 8, or'):
        job.prepare()
    state.done.append('train')
    state.write(folder)
    job.prepare()
    make_run(folder / 'train', '20260101_000000', config, '{"loss": 2, "step": 100}\n', 'GPU number: 8\n')
    config.resume = True
    make_run(folder / 'train', '20260102_000000', config, '{"mIoU": 32, "step": 40000}\n', 'GPU number: 4\n')
    assert 'trained by 8 and 4 processes in turn' in compare([tmp_path]).warnings[0]


def test_another_learning_rate_schedule_and_accumulated_steps_are_said(tmp_path):
    config = Config.fromfile(task_backbones(TASKS['detection'])['resnet-18'].config)
    config.merge_from_dict({'param_scheduler.1.milestones': [6, 9], 'optim_wrapper.accumulative_counts': 2})
    text = '{"loss": 2, "step": 100}\n{"coco/bbox_mAP": 0.3, "step": 12}\n'
    make_run(tmp_path / 'resnet-18', '20260101_000000', config, text, 'GPU number: 8\n')
    (warning,) = (line for line in compare([tmp_path]).warnings if line.startswith('This is not the published'))
    assert (
        'learning rate schedule LinearLR, MultiStepLR at 6 and 9 instead of LinearLR, MultiStepLR at 8 and 11; '
        'batch 64 instead of 32'
    ) in warning


def test_scalars_that_cannot_be_read_do_not_end_a_training(tmp_path):
    class Short(Job):
        """Another command in place of the tools."""

        def command(self, step):
            return [sys.executable, '-c', 'import time; time.sleep(1.5)']

    config = Config(dict(train_cfg=dict(max_iters=4)))
    scalars = tmp_path / 'train' / '20260101_000000' / 'vis_data' / 'scalars.json'
    scalars.mkdir(parents=True)  # reading it is an OSError
    assert run_jobs([Short('short', tmp_path, config, 'config.py')], Console(quiet=True)) == {'short': None}
    scalars.rmdir()
    scalars.write_bytes(b'{"loss": 1.0, "step": 2}\n[1]\n5\n{"loss": \xff')
    assert training_progress(tmp_path / 'train', config) == (0.5, 'iteration 2/4, loss 1.000')


def test_what_cannot_be_read_is_said_where_nothing_else_is_found(tmp_path):
    config = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config)
    make_run(tmp_path / 'resnet-18', '20260101_000000', config, '{"loss": 2, "step": 100}')
    make_run(tmp_path / 'cut', '20260101_000000', config, '{"mIoU": 3}')
    (tmp_path / 'cut' / '20260101_000000' / 'vis_data' / 'config.py').write_text('model = dict(')
    with pytest.raises(UserError, match=r'nothing was validated or tested; .*/cut/.* cannot be read \(SyntaxError\)'):
        collect([tmp_path])


def test_benchmark_files_of_one_machine_with_and_without_exported_modes(tmp_path):
    config = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config)
    make_run(tmp_path / 'resnet-18', '20260101_000000', config, '{"mIoU": 3}')
    files = []
    for i, runtimes in enumerate(({}, dict(onnx='1'), dict(onnx='2'))):
        found = records({Case('segmentor', (64 * (i + 1),) * 2): [Measurement('resnet-18', 'ResNet-18')]})
        content = dict(machine=dict(torch='2', **runtimes), measurements=list(found))
        files.append(tmp_path / f'{i}.json')
        files[-1].write_text(json.dumps(content))
    assert compare([tmp_path], files[:2]).machine == compare([tmp_path], files[1::-1]).machine
    with pytest.raises(UserError, match='different machines'):
        compare([tmp_path], files)


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


def test_one_epoch_is_drawn_by_epoch(tmp_path):
    config = Config.fromfile(task_backbones(TASKS['classification'])['deit-t'].config)
    config.train_cfg.max_epochs = 1
    text = '{"loss": 2, "step": 100}\n{"accuracy/top1": 3, "step": 1}\n'
    make_run(tmp_path / 'deit-t', '20260101_000000', config, text)
    assert make_figures(compare([tmp_path]))['training'][1].axes[1].get_xlabel() == 'epoch'


def test_no_two_backbones_look_the_same():
    looks = styles(['one', 'another', 'EfficientMod-of-mine'])
    assert {'one', 'another', 'EfficientMod-of-mine', *NAMES} == set(looks)
    for parts in (('color', 'marker'), ('color', 'linestyle', 'marker')):
        assert len({tuple(look[part] for part in parts) for look in looks.values() if look['color'] != RED}) == len(
            [name for name in looks if not name.startswith('EfficientMod')]
        )
    lines = [(look['color'], look['linestyle']) for name, look in looks.items() if not name.startswith('Eff')]
    assert len(set(lines)) == len(lines)


def test_a_system_without_sighup():
    code = 'import runpy, signal, sys; del signal.SIGHUP; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], {}, '
    command = [sys.executable, '-c', f"{code}'__main__')", TOOL, '--help']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_validated_and_tested_backbones_side_by_side(tmp_path):
    """On CamVid the two are different images."""
    task = TASKS['segmentation']
    overlay = Settings(task, overlays=[str(REPO / 'configs/_base_/overlays/camvid.py')])
    for key, metrics in (('resnet-18', '{"mIoU": 30}'), ('efficientmod-s', '{"mIoU": 40, "step": 40000}')):
        make_run(tmp_path / key, '20260101_000000', backbone_config(task_backbones(task)[key], overlay)[0], metrics)
    comparison = compare([tmp_path])
    data = dict(comparison.setting)['data set']
    assert 'images/test annotations/test (11 classes) (ResNet-18)' in data and 'images/val' in data
    assert 'The backbones were not run alike: see data set.' in comparison.warnings
    assert comparison.columns['mIoU'].label('published') == 'published, ADE20K' and not comparison.comparable


def test_what_cannot_be_read_is_an_error_and_the_rest_is_reported(work_dir, tmp_path, capsys):
    odd, cut, foreign, other = (
        tmp_path / name / '20260101_000000' / 'vis_data' for name in ('odd', 'cut', 'foreign', 'other')
    )
    for folder, text in (
        (odd, "default_scope = 'mmseg'\ntrain_cfg = dict(max_iters=1)"),
        (cut, 'model = dict('),
        (foreign, "default_scope = 'mmpose'"),
        (other, "default_scope = 'mmseg'"),
    ):
        folder.mkdir(parents=True)
        (folder / 'config.py').write_text(text)
        (folder.parent / '20260101_000000.json').write_text('{"mIoU": 3}')
    (other / 'scalars.json').write_text('{"loss": 1, "step": 1}')
    (tmp_path / 'state.json').write_text('[1]')
    assert fails('report', work_dir, tmp_path, '--out', tmp_path / 'out') == '1'
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 4 and 'cut' in errors[0] and 'other/20260101_000000 is not understood' in errors[1]
    assert errors[2].startswith('error: odd: its config is not understood')
    with open(tmp_path / 'out' / 'comparison.csv') as file:
        assert [row['backbone'] for row in csv.DictReader(file) if row['mIoU, measured']] == ['ResNet-18']


def test_benchmark_files(work_dir, tmp_path):
    def write(name: str, *cases: Case, **machine) -> Path:
        content = dict(
            machine={'torch': '2', 'cpu': 'x', **machine},
            measurements=list(records({case: [Measurement('resnet-18', 'ResNet-18', 1, 1, 2.0)] for case in cases})),
        )
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    case = Case('segmentor', (512, 512))
    one = write('one', case, Case('segmentor', (512, 512), precision='fp16'), load=1)
    other = write('other', Case('segmentor', (64, 64)), Case('detector', (64, 64)), load=2)
    comparison = compare([work_dir], [one, other])
    latencies = [heading for heading, column in comparison.columns.items() if column.kind == 'latency']
    parts = [tuple(comparison.table[heading]) for heading in latencies]
    assert parts == [('measured', 'published'), ('measured',), ('measured',)]
    with pytest.raises(UserError, match='two benchmark files hold segmentor, 512 x 512'):
        compare([work_dir], [one, write('again', case)])
    with pytest.raises(UserError, match='different machines'):
        compare([work_dir], [one, write('elsewhere', cpu='y')])
    assert compare([work_dir], [write('none')]).problems == [
        'the benchmark holds no segmentor: run tools/benchmark.py with --parts segmentor'
    ]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'does not exist: make it by tools/benchmark.py'),
        ('{"measurements": [{}]}', 'is no JSON file of tools/benchmark.py'),
        ('no json', 'is no JSON file of tools/benchmark.py'),
    ],
)
def test_bad_benchmark_file(content, message, work_dir, tmp_path):
    path = tmp_path / 'benchmark.json'
    if content:
        path.write_text(content)
    assert message in fails('report', work_dir, '--benchmark', path)


def test_a_run_knows_who_it_is(work_dir, tmp_path):
    """Whatever its folders and config are called."""
    shutil.copytree(work_dir / 'resnet-18' / 'train', tmp_path / 'moved' / 'elsewhere')
    for config in (tmp_path / 'moved' / 'elsewhere').glob('*.py'):
        config.rename(config.with_name('renamed.py'))
    result = collect([tmp_path])[1]['resnet-18']
    assert result.backbone.name == 'ResNet-18'
    assert result.training.mmefficientmod.settings['train_cfg.max_iters'] == ITERS


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('one\nTraceback\nValueError: two\n', 'ValueError: two'),
        (
            '[rank0]: torch.OutOfMemoryError: CUDA\nW1122 api.py: Sending\nx.errors.ChildFailedError: \n====\n',
            '[rank0]: torch.OutOfMemoryError: CUDA',
        ),
        ('no reason\n\n', 'no reason'),
        ('', 'it printed nothing'),
    ],
)
def test_reason_of_a_failure(text, line, tmp_path):
    (tmp_path / 'log').write_text(text)
    assert last_line(tmp_path / 'log') == line
    with open(tmp_path / 'log', 'a') as file:
        begin = file.tell()
        file.write('another run, killed')
    assert last_line(tmp_path / 'log', begin) == 'another run, killed'


@pytest.mark.parametrize('note', [None, '', '/elsewhere/iter_9.pth', 'iter_10.pth'])
def test_the_last_checkpoint_is_found_without_its_note(note, tmp_path):
    assert last_checkpoint(tmp_path) is None
    for name in ('iter_2.pth', 'iter_10.pth', 'best_mIoU_iter_99.pth', '.iter_12.pth'):
        (tmp_path / name).touch()
    if note is not None:
        (tmp_path / 'last_checkpoint').write_text(note)
    assert last_checkpoint(tmp_path) == tmp_path / 'iter_10.pth'


def test_what_two_processes_wrote_into_one_file_is_read(tmp_path):
    """MMEngine's processes write a test's metrics at the same time; the end of the longer text stays behind."""
    run = tmp_path / '20261128_092300'
    (run / 'vis_data').mkdir(parents=True)
    (run / 'vis_data/config.py').write_text('')
    (run / f'{run.name}.json').write_text('{"mIoU": 24.92, "time": 0.04}}')
    assert Run(run).test_metrics() == dict(mIoU=24.92, time=0.04)
