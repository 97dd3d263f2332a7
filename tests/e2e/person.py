"""person.py BUILD - what a person does with alignctl, from `up` to `down`: looks at
the data, tries, submits, watches in a terminal (late, resized, across a kill -9 of the
daemon, Ctrl-C), cancels, resumes, runs again, reads logs and metrics, and waits for a job
that fails."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig

JOB = DEMO / 'job.yaml'
FAST = ['load_in_4bit=true', 'train_batch_size=4', 'max_length=128', 'eval={split_from_train: 16}',
        'eval_steps=20', 'save_steps=20', 'threads_per_device=1']


def sets(*more):
    out = []
    for s in [*FAST, *more]:
        out += ['--set', s]
    return out


UMASK = os.umask(0o022)
os.umask(UMASK)
SANITIZED = b'__asan_init' in Path(sys.argv[1], 'worker/align-worker').read_bytes()
COMMIT = '0123456789abcdef' * 2 + '01234567'


def cached(rig):
    """The demo's model as huggingface_hub keeps one: links into blobs/."""
    repo = rig.dir / 'hub/models--demo--tiny'
    snapshot = repo / 'snapshots' / COMMIT
    snapshot.mkdir(parents=True)
    (repo / 'blobs').mkdir()
    (repo / 'refs').mkdir()
    (repo / 'refs/main').write_text(COMMIT)
    for i, name in enumerate(['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']):
        (repo / f'blobs/{i}').write_bytes((DEMO / name).read_bytes())
        (snapshot / name).symlink_to(f'../../blobs/{i}')
    rig.env['HF_HUB_CACHE'] = str(rig.dir / 'hub')
    out = json.loads(rig.ctl('check', JOB, '--set', 'model_name_or_path=demo/tiny', '--json').stdout)
    values = out['resolved']['values']
    assert values['model_revision'] == COMMIT and values['model_dir'] == str(snapshot), values
    job = int(rig.ctl('submit', JOB, *sets('max_steps=2', 'model_name_or_path=demo/tiny', f'output_dir={rig.dir}/c'),
                      '--wait', '--parsable').stdout.split()[0])
    spec = json.loads((rig.dir / 'c/spec.resolved.json').read_text())
    assert spec['values']['model_revision'] == COMMIT, job
    out = rig.ctl('check', JOB, '--set', 'model_name_or_path=demo/none', ok=False)
    assert out.returncode == 1 and 'hf download demo/none' in out.stderr, out


class Terminal:
    """`alignctl watch` on a terminal of its own."""

    def __init__(self, rig, job, rows=30, columns=100):
        self.seen = b''
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            env = dict(rig.env, TERM='xterm', LC_ALL='C.UTF-8')
            path = str(rig.build / 'client/alignctl')
            os.execve(path, [path, 'watch', str(job)], env)
        self.size(rows, columns)

    def size(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))

    def wait(self, pattern, timeout=120):
        end = time.monotonic() + timeout
        while not re.search(pattern, self.seen):
            if time.monotonic() > end:
                raise AssertionError(f'{pattern} not seen; the end: {self.seen[-3000:]!r}')
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    end = 0
        return True

    def close(self):
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code


def look(rig):
    out = rig.ctl('check', JOB)
    assert 'ok: batch 16 = ' in out.stdout and 'pairs' in out.stdout, out.stdout
    out = rig.ctl('check', JOB, '--set', 'lora_rr=1', '--set', 'beta=0', '--json', ok=False)
    assert out.returncode == 1, out
    problems = json.loads(out.stdout)['problems']
    assert len(problems) == 2, problems
    out = rig.ctl('data', JOB, '--show', '2')
    assert out.stdout.count('chosen (') == 2 and '[[' in out.stdout and 'p95' in out.stdout
    shown = json.loads(rig.ctl('data', JOB, '--show', '1', '--json').stdout)
    tokens = [t for p in shown['examples_shown'][0]['parts'] for t in p['tokens']]
    assert tokens[0]['special'] and tokens[-1]['special'], tokens
    out = rig.ctl('plan', JOB, *sets()).stdout
    assert re.search(r'^steps +[0-9,]+, [0-9,]+ an epoch; warmup ', out, re.M) and 'FLOP a step' in out, out
    assert re.search(r'^  weights +[0-9.]+ MB  4 bits, dequantised once$', out, re.M), out
    assert json.loads(rig.ctl('plan', JOB, *sets(), '--json').stdout)['flops']['run'] > 0
    before = set(Path('/tmp').iterdir())
    out = rig.ctl('try', JOB, *sets())
    assert re.search(r'^ok: step-0 loss 0\.6931 = ln 2; peak .* s/step; whole run about ', out.stdout), out
    assert not [p for p in set(Path('/tmp').iterdir()) - before if 'try' in p.name]
    tried = json.loads(rig.ctl('try', JOB, *sets(), '--json').stdout)
    assert 0.95 < tried['plan_bytes'] / tried['peak_bytes'] < 1.12 or SANITIZED, tried


def watch(rig):
    job = rig.submit(JOB, *FAST, 'max_steps=2000', 'save_total_limit=2', f'output_dir={rig.dir}/w')
    rig.wait_state(job, ['RUNNING'])
    term = Terminal(rig, job)
    term.wait(rb'/2,000 .*ETA')
    term.wait(rb'rewards/margins')
    term.wait(rb'\xe2\xa0|\xe2\xa1|\xe2\xa2|\xe2\xa3')  # braille
    term.seen = b''
    term.size(12, 40)
    term.wait(rb'\x1b\[2J')
    rig.kill_daemon()
    term.seen = b''
    term.wait(rb'alignd does not answer')
    rig.up()
    term.seen = b''
    term.wait(rb'(?s)\x1b\[H(?:(?!does not answer|\x1b\[H).)*Ctrl-C leaves')
    os.write(term.fd, b'\x03')
    term.wait(rb'trains on; alignctl watch')
    assert term.close() == 0
    show = rig.show(job)
    assert show['state'] == 'RUNNING' and show['attempt'] == 1, show
    return job


def cancel_and_go_on(rig, job):
    out = rig.ctl('cancel', job)
    adapter = Path(out.stdout.split('its adapter: ')[1].strip())
    assert (adapter / 'adapter_model.safetensors').exists() and rig.state_of(job) == 'CANCELLED'
    step = rig.show(job)['step']
    assert rig.ctl('wait', job, ok=False).returncode == 4
    rig.ctl('resume', job, '--set', f'max_steps={step + 10}', '--wait')
    show = rig.show(job)
    assert show['state'] == 'COMPLETED' and show['attempt'] == 2 and show['step'] == step + 10, show
    assert rig.ctl('resume', job, ok=False).returncode == 6
    for change in 'devices=1', 'output_dir=elsewhere', 'max_steps=1':
        out = rig.ctl('resume', job, '--set', change, ok=False)
        assert out.returncode == 6 and change.split('=')[0] in out.stderr, out
    told = [{k: v for k, v in r.items() if k != 'seq'} for r in rig.metrics(job) if r['kind'] != 'rewind']
    written = [json.loads(line) for line in (rig.dir / 'w/metrics.jsonl').read_text().splitlines()]
    assert told == written and [r['attempt'] for r in told if r['kind'] == 'start'] == [1, 2]
    history = json.loads((rig.dir / 'w/trainer_state.json').read_text())['log_history']
    assert len(history) == len(told) - 2 and all('step' in r and 'epoch' in r for r in history)
    rows = [r for r in told if r['kind'] == 'train']
    assert [r['global_step'] for r in rows] == list(range(1, step + 11))
    assert (rig.dir / 'w/metrics.jsonl').stat().st_mode & 0o777 == 0o666 & ~UMASK
    assert len(list((rig.dir / 'w').glob('checkpoint-*'))) == 2, 'save_total_limit counts all attempts'
    out = rig.ctl('logs', job)
    assert 'checkpoint' in out.stdout
    again = int(rig.ctl('rerun', job, '--set', 'max_steps=5', '--set', f'output_dir={rig.dir}/again-{{id}}',
                        '--parsable', '--wait').stdout.split()[0])
    assert (rig.dir / f'again-{again}' / 'adapter_config.json').exists()
    out = rig.ctl('rerun', job, '--set', 'max_steps=5', ok=False)
    assert out.returncode == 6 and '{id}' in out.stderr and '--overwrite' in out.stderr, out
    out = rig.ctl('watch', again)
    assert out.stdout.count('\nstep ') >= 5 and f'job {again} COMPLETED: 5 steps' in out.stdout, out
    lines = [line.split() for line in rig.ctl('list').stdout.splitlines()]
    assert lines[0] == ['JOBID', 'NAME', 'USER', 'ST', 'TIME', 'METHOD', 'STEP', 'LOSS', 'DEVICES', 'REASON']
    assert [line[3] for line in lines[1:3]] == ['CD', 'CD'], lines


def killed(rig):
    """What a job wrote before it was killed is named, though it could say nothing."""
    job = rig.submit(JOB, *FAST, 'max_steps=4000', 'save_steps=2', f'output_dir={rig.dir}/k')
    end = time.monotonic() + 120
    while not list((rig.dir / 'k').glob('checkpoint-*')):
        assert time.monotonic() < end, rig.show(job)
        time.sleep(0.05)
    out = rig.ctl('cancel', job, '--now')
    adapter = Path(out.stdout.split('its adapter: ')[1].strip())
    assert (adapter / 'adapter_model.safetensors').exists() and adapter.parent == rig.dir / 'k', out
    assert str(adapter) in rig.ctl('wait', job, ok=False).stderr
    assert str(adapter) in rig.ctl('show', job).stdout
    steps = int(adapter.name.split('-')[1])
    rig.ctl('resume', job, '--set', f'max_steps={rig.show(job)["step"] + 2}', '--wait')
    assert rig.show(job)['attempts'][1]['resume_step'] >= steps


def twice(rig):
    """The same submit again is the same job; with other contents it is refused."""
    key, args = ['--key', '0123456789abcdef' * 2, '--parsable'], [f'output_dir={rig.dir}/t-{{id}}', 'max_steps=2']
    first = rig.ctl('submit', JOB, *sets(*args), *key).stdout.split()[0]
    assert rig.ctl('submit', JOB, *sets(*args), *key).stdout.split()[0] == first
    out = rig.ctl('submit', JOB, *sets(*args, 'seed=2'), *key, ok=False)
    assert out.returncode == 6, out
    assert len(json.loads(rig.ctl('list', '--json').stdout)) == int(first)
    rig.ctl('wait', first)


def fails(rig):
    job = rig.submit(JOB, *FAST, 'max_steps=400', f'output_dir={rig.dir}/f')
    end = time.monotonic() + 180
    while not rig.gang(job, 1):
        assert time.monotonic() < end, rig.ctl('list').stdout + (rig.state / 'alignd.log').read_text()[-3000:]
        time.sleep(0.1)
    rig.wait_state(job, ['RUNNING'])
    time.sleep(0.5)
    os.kill(rig.gang(job, 1)['ranks'][1]['pid'], signal.SIGABRT)
    out = rig.ctl('wait', job, ok=False)
    assert out.returncode == 4 and 'rank 1 was ended by signal 6' in out.stderr, out
    assert 'rank 1 printed nothing' in out.stderr, out
    assert rig.ctl('show', 99, ok=False).returncode == 3
    out = rig.ctl('submit', JOB, *sets(f'output_dir={rig.dir}/f'), ok=False)
    assert out.returncode == 6, out
    out = rig.ctl('submit', JOB, *sets('max_steps=3', f'output_dir={rig.dir}/f'), '--overwrite', '--watch')
    assert 'COMPLETED' in out.stdout, out


def main():
    rig = Rig(sys.argv[1])
    try:
        assert rig.ctl('list', ok=False).returncode == 5
        rig.up()
        assert 'runs already' in rig.ctl('up').stdout
        look(rig)
        cancel_and_go_on(rig, watch(rig))
        killed(rig)
        twice(rig)
        fails(rig)
        cached(rig)
        assert 'has stopped' in rig.ctl('down').stdout
        assert rig.ctl('list', ok=False).returncode == 5
    finally:
        rig.close()
    print('person: ok')


if __name__ == '__main__':
    main()
