"""standalone.py BUILD - `align-worker run` without a daemon: stopped and killed in every
way it comes back with the same command, and ends with the same bytes: with float32 and with 8-bit
moments, and where the run was begun by release 0.1, which had no optim."""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, alive, comparable, kill

BUILD = Path(sys.argv[1]).resolve()
DIR = Path(tempfile.mkdtemp(prefix='alignd-run-', dir='/tmp'))
SETS = ['max_steps=40', 'save_steps=4', 'eval_steps=20', 'train_batch_size=4', 'max_length=128',
        'eval={split_from_train: 8}', 'threads_per_device=1']


def command(name, *sets, more=()):
    args = [str(BUILD / 'worker/align-worker'), 'run', str(DEMO / 'job.yaml'), *more]
    for s in [*SETS, f'output_dir={DIR}/{name}', *sets]:
        args += ['--set', s]
    return args


def run(name, *sets, more=()):
    return subprocess.run(command(name, *sets, more=more), capture_output=True, text=True, timeout=200)


def pids_of(name, ranks):
    try:
        pids = json.loads((DIR / name / '.gang/pids.json').read_text())
    except (OSError, ValueError):
        return None
    return pids if len(pids['ranks']) == ranks else None


def started(name, ranks, process, steps):
    """Starts a run and waits until its newest attempt has made some steps."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        pids = pids_of(name, ranks)
        folders = sorted((DIR / name / 'attempts').glob('*'), key=lambda p: int(p.name))
        if pids and pids['supervisor']['pid'] == process.pid and folders:
            spool = folders[-1] / 'metrics.jsonl'
            if spool.exists() and spool.read_text().count('\n') > steps:
                return pids
        time.sleep(0.02)
    raise AssertionError(f'no step in 60 s; exit {process.poll()}')


def disturb(name, ranks, pick, number, *sets):
    process = subprocess.Popen(command(name, *sets), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = started(name, ranks, process, 3)
    everybody = [pids['supervisor'], *pids['ranks']]
    assert kill(everybody[pick], number)
    out, err = process.communicate(timeout=60)
    end = time.monotonic() + 5
    while any(map(alive, everybody)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(alive, everybody)), 'a process of the gang is left'
    return process.returncode, out, err


def test_same_bytes():
    calm = run('a')
    assert calm.returncode == 0, calm
    assert 'from peft import PeftModel' in calm.stdout
    ways = [(0, signal.SIGTERM, 85), (1, signal.SIGUSR1, 85), (2, signal.SIGUSR2, 85),
            (0, signal.SIGKILL, -9), (2, signal.SIGKILL, 1), (0, signal.SIGINT, 85)]
    for pick, number, want in ways:
        code, out, err = disturb('b', 2, pick, number)
        assert code == want, (pick, number, code, out, err)
        if want == 85:
            assert 'the same command continues' in out, out
        if want == 1:
            assert 'rank 1' in err and 'SIGKILL' in err, err
    last = run('b')
    assert last.returncode == 0, last
    for file in ('adapter_model.safetensors', 'adapter_config.json'):
        assert (DIR / 'a' / file).read_bytes() == (DIR / 'b' / file).read_bytes(), file
    rows = [[json.loads(line) for line in (DIR / d / 'metrics.jsonl').read_text().splitlines()] for d in 'ab']
    assert comparable(rows[0]) == comparable(rows[1]), 'metrics.jsonl differs'
    assert len(list((DIR / 'b/attempts').iterdir())) == len(ways) + 1
    again = run('b')
    assert again.returncode == 0 and 'finished already' in again.stdout, again
    assert len(list((DIR / 'b/attempts').iterdir())) == len(ways) + 1
    print(f'{len(ways)} ways to end it, {len(ways) + 1} attempts: the same bytes')


EIGHT = ['optim=adamw_8bit', 'lora_r=64', 'lora_alpha=64', 'max_steps=16']  # k's and v's B stay float32


def same_state(a, b, step):
    for file in ('adapter_model.safetensors', f'checkpoint-{step}/state.safetensors'):
        assert (DIR / a / file).read_bytes() == (DIR / b / file).read_bytes(), file


def test_eight_bits():
    calm = run('eight', *EIGHT)
    assert calm.returncode == 0, calm
    for pick, number, want in [(2, signal.SIGKILL, 1), (0, signal.SIGTERM, 85), (0, signal.SIGKILL, -9)]:
        code, out, err = disturb('eight-b', 2, pick, number, *EIGHT)
        assert code == want, (pick, number, code, out, err)
    last = run('eight-b', *EIGHT)
    assert last.returncode == 0, last
    same_state('eight', 'eight-b', 16)
    other = run('eight-b', *EIGHT, 'optim=adamw_torch')
    assert other.returncode == 1 and 'another job file' in other.stderr, other
    print('8-bit moments, killed and stopped: the same bytes')


def as_release_0_1(name):
    """What it would have left: no optim, neither in the resolved spec nor in the checkpoints."""
    gang = DIR / name / '.gang/gang.json'
    g = json.loads(gang.read_text())
    assert g['spec']['values'].pop('optim') == 'adamw_torch' and g['spec']['origin'].pop('optim') == 'user'
    g['spec']['ignored'].append({'key': 'optim', 'reason': '"adamw_torch" is what alignd does anyway'})
    gang.write_text(json.dumps(g))
    states = list((DIR / name).glob('attempts/*/checkpoint-*/state.json'))
    assert states
    for path in states:
        text = path.read_text()
        body = text[:text.index('  "check"')].replace('  "optim": "adamw_torch",\n', '')
        path.write_text(f'{body}  "check": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n')


def test_older_release():
    sets = ['optim=adamw_torch', 'max_steps=16']
    assert run('f', *sets).returncode == 0
    code, out, err = disturb('g', 2, 0, signal.SIGTERM, *sets)
    assert code == 85, (code, out, err)
    as_release_0_1('g')
    other = run('g', 'max_steps=16', 'optim=adamw_8bit')
    assert other.returncode == 1 and 'another job file' in other.stderr, other
    last = run('g', 'max_steps=16')  # the default
    assert last.returncode == 0, last
    same_state('f', 'g', 16)
    log = (DIR / 'g/attempts/2/rank-0.log').read_text()
    assert 'resume from=' in log and 'the job changed' not in log, log
    print('a run that release 0.1 began goes on to the same bytes')


def test_refusals():
    other = run('b', 'beta=0.2')
    assert other.returncode == 1, other
    assert '--overwrite' in other.stderr and '{id}' in other.stderr, other.stderr
    (DIR / 'c').mkdir()
    (DIR / 'c/notes.txt').write_text('mine')
    used = run('c')
    assert used.returncode == 1 and '--overwrite' in used.stderr, used
    anew = run('b', 'beta=0.2', 'max_steps=2', more=['--overwrite'])
    assert anew.returncode == 0, anew
    assert [p.name for p in (DIR / 'b/attempts').iterdir()] == ['1']
    assert len((DIR / 'b/metrics.jsonl').read_text().splitlines()) < 10
    bad = run('d', 'learning_rat=1')
    assert bad.returncode == 2 and 'learning_rate' in bad.stderr, bad
    assert not (DIR / 'd').exists()
    print('refusals name both ways out')


def test_stop_told_to_each():
    """Four ranks, told one at a time: all end after the same step."""
    for rank in range(4):
        code, out, err = disturb('four', 4, 1 + rank, signal.SIGTERM, 'devices=4')
        assert code == 85, (code, out, err)
        record = json.loads((DIR / 'four/.gang/exit.json').read_text())
        steps = {r['step'] for r in record['ranks']}
        assert len(steps) == 1 and [r['code'] for r in record['ranks']] == [85] * 4, record
        assert (DIR / f'four/checkpoint-{steps.pop()}').exists()
    print('4 ranks told in turn: all end at the same step')


def test_two_at_once():
    process = subprocess.Popen(command('e', 'max_steps=4000'), stdout=subprocess.DEVNULL)
    started('e', 2, process, 2)
    second = run('e', 'max_steps=4000')
    assert second.returncode == 1 and 'another' in second.stderr, second
    process.terminate()
    assert process.wait(60) == 85
    print('one run at a time in a folder')


try:
    test_same_bytes()
    test_eight_bits()
    test_older_release()
    test_refusals()
    test_stop_told_to_each()
    test_two_at_once()
finally:
    shutil.rmtree(DIR, ignore_errors=True)
