"""gang_faults.py BUILD - what a gang and its daemon go through together: a daemon that
dies while ranks meet or while they train, a supervisor that dies with its record
unsent, a stop that reaches four ranks, output that arrives whole."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig, alive, kill

SETS = ['max_steps=24', 'save_steps=8', 'eval_steps=12', 'train_batch_size=4', 'max_length=128',
        'eval={split_from_train: 8}', 'threads_per_device=1']


def submit(rig, name, *sets):
    return rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/{name}', *sets)


def until(what, true, timeout=60):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = true()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f'{what}: not within {timeout} s')


def spool(rig, name, attempt=1):
    try:
        text = (rig.dir / name / f'attempts/{attempt}/metrics.jsonl').read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith('}')]


def check_complete(rig, job, name):
    """COMPLETED in the first attempt, and every row of the spool is the daemon's, once."""
    assert rig.wait_state(job, {'COMPLETED', 'FAILED', 'NODE_FAIL'}) == 'COMPLETED', rig.show(job)
    assert rig.show(job)['attempt'] == 1
    want = [row['n'] for row in spool(rig, name)]
    assert [row['n'] for row in rig.metrics(job, '--all')] == want
    assert want == list(range(1, len(want) + 1)) and len(want) > 24


def test_killed_while_meeting(rig):
    """Rank 0 has put its values and waits; rank 1 comes only after the daemon is back. The
    moment is sought with a real gang here; tests/daemon/test_meeting.c has the exact orders."""
    for attempt in range(20):
        name = f'meet{attempt}'
        job = submit(rig, name)
        pids = until('ranks', lambda: rig.gang(job, 1))
        met = lambda: 'backend=' in (rig.dir / name / 'attempts/1/rank-0.log').read_text()
        if not kill(pids['ranks'][1], signal.SIGSTOP):
            raise AssertionError('rank 1 is gone')
        time.sleep(1)
        sought = not met()
        if sought:
            rig.kill_daemon()
        kill(pids['ranks'][1], signal.SIGCONT)
        if sought:
            time.sleep(1)
            sought = not met()  # else rank 1 had stopped with all that it needed
            rig.up()
        check_complete(rig, job, name)
        if sought:
            print('the daemon killed between rdv_put and rdv_get: the gang met')
            return
    raise AssertionError('never stopped rank 1 before it had what it needed of rank 0')


def test_daemon_away(rig):
    """The ranks finish without a daemon and free the devices; the supervisor waits."""
    job = submit(rig, 'away')
    pids = until('ranks', lambda: rig.gang(job, 1))
    until('steps', lambda: len(spool(rig, 'away')) > 4)
    rig.kill_daemon()
    folder = next(rig.state.glob(f'gangs/alignd-*-{job}-1'))
    until('exit.json', (folder / 'exit.json').exists)
    assert not any(map(alive, pids['ranks'])) and alive(pids['supervisor'])
    rig.up()
    check_complete(rig, job, 'away')
    until('the supervisor to go', lambda: not alive(pids['supervisor']), 10)
    print('finished while the daemon was away: nothing missing, nothing doubled')


def test_record_unsent(rig):
    """As before, and the supervisor dies before anybody asks."""
    job = submit(rig, 'unsent')
    pids = until('ranks', lambda: rig.gang(job, 1))
    until('steps', lambda: len(spool(rig, 'unsent')) > 4)
    rig.kill_daemon()
    folder = next(rig.state.glob(f'gangs/alignd-*-{job}-1'))
    until('exit.json', (folder / 'exit.json').exists)
    kill(pids['supervisor'])
    rig.up()
    check_complete(rig, job, 'unsent')
    print('the supervisor killed with its record unsent: another one sent the rest')


def test_stop_four(rig):
    job = submit(rig, 'four', 'devices=4', 'max_steps=4000')
    until('steps', lambda: len(spool(rig, 'four')) > 4)
    rig.ctl('cancel', job)
    assert rig.wait_state(job, {'CANCELLED', 'FAILED', 'COMPLETED'}) == 'CANCELLED', rig.show(job)
    last = spool(rig, 'four')[-1]['global_step']
    assert (rig.dir / f'four/checkpoint-{last}/adapter_model.safetensors').exists()
    for folder in rig.state.glob(f'gangs/alignd-*-{job}-1'):
        record = json.loads((folder / 'exit.json').read_text())
        assert {(r['code'], r['step']) for r in record['ranks']} == {(85, last)}, record
    print('cancel: four ranks end at the same step, with a checkpoint')


def test_logs_whole(rig):
    """A line of 256 KB, output without newlines, bytes that are no text: as they were written."""
    job = submit(rig, 'logs')
    until('steps', lambda: len(spool(rig, 'logs')) > 2)
    odd = b'x' * (256 << 10) + b'\n' + b'50%\r' * 5000 + b'\xff\x00\xfe' + b'no newline at the end'
    with open(rig.dir / 'logs/attempts/1/rank-1.log', 'ab') as log:
        log.write(odd)
    assert rig.wait_state(job, {'COMPLETED', 'FAILED'}) == 'COMPLETED'
    for rank in (0, 1):
        text = (rig.dir / f'logs/attempts/1/rank-{rank}.log').read_bytes()
        shown = subprocess.run([str(rig.build / 'client/alignctl'), 'logs', str(job), '--rank', str(rank)],
                               env=rig.env, capture_output=True, timeout=60).stdout
        assert shown == text and (rank == 0 or odd in text), (rank, len(shown), len(text))
    print('logs arrive whole')


rig = Rig(sys.argv[1], slots=4)
try:
    rig.up()
    for test in (test_killed_while_meeting, test_daemon_away, test_record_unsent, test_stop_four, test_logs_whole):
        test(rig)
finally:
    rig.close()
