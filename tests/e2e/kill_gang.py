"""kill_gang.py BUILD [KILLS [SEED]] - kill -9 of a random rank or supervisor at random
steps, one inside a checkpoint write, through the daemon with resume: the adapter's
bytes and the live metric rows equal those of the undisturbed run, and a watcher saw
each rewind."""
import json
import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig, comparable, kill

STEPS = 60
SETS = ['method=dpo', 'load_in_4bit=true', f'max_steps={STEPS}', 'save_steps=3', 'eval_steps=20',
        'train_batch_size=4', 'max_length=128', 'save_total_limit=2', 'eval={split_from_train: 16}',
        'threads_per_device=1']


def start(rig, name):
    return rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/{name}')


def last_step(folder):
    """(step the attempt began at, newest step) of its spool."""
    try:
        lines = (folder / 'metrics.jsonl').read_text().splitlines()
        rows = [json.loads(line) for line in lines if line.endswith('}')]
    except (OSError, ValueError):
        return None
    return (rows[0]['global_step'], rows[-1]['global_step']) if rows else None


def wait_moment(rig, job, attempt, steps, in_checkpoint):
    """Until the attempt has done `steps` steps, or writes a checkpoint. The gang, or None
    if the job ended first."""
    folder = rig.dir / 'b/attempts' / str(attempt)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        at = last_step(folder)
        if at and in_checkpoint and any(folder.glob('.checkpoint-*.part')):
            return rig.gang(job, attempt)
        if at and not in_checkpoint and at[1] - at[0] >= steps:
            return rig.gang(job, attempt)
        if rig.gang(job, attempt) and (rig.dir / 'b/adapter_model.safetensors').exists():
            return None
        time.sleep(0.0005 if in_checkpoint and at else 0.02)
    raise AssertionError(f'attempt {attempt} made no step in 120 s')


class Watch:
    """`metrics --follow` ends when the job is over; after a resume another one begins."""

    def __init__(self, rig, job):
        self.rig, self.job, self.processes = rig, job, []
        self.again()

    def path(self, i):
        return self.rig.dir / f'follow-{i}'

    def again(self):
        if self.processes:
            self.processes[-1].wait(30)
        with open(self.path(len(self.processes)), 'wb') as out:
            self.processes.append(subprocess.Popen(
                [str(self.rig.build / 'client/alignctl'), 'metrics', str(self.job), '--json', '--follow'],
                env=self.rig.env, stdout=out))

    def rows(self):
        """The rows that each one printed."""
        self.processes[-1].wait(30)
        return [[json.loads(line) for line in self.path(i).read_text().splitlines()]
                for i in range(len(self.processes))]


def wait_next(rig, job, attempt, watch):
    """Until the job runs its next attempt: by itself after a lost gang, else resumed."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        show = rig.show(job)
        if show['attempt'] > attempt:
            return show['attempt'], False
        if show['state'] == 'COMPLETED':
            return 0, False
        if show['state'] in ('FAILED', 'NODE_FAIL', 'OUT_OF_MEMORY'):
            rig.ctl('resume', job)
            watch.again()
            return attempt + 1, True
        time.sleep(0.05)
    raise AssertionError(f'job {job} did not go on: {show}')


def disturb(rig, job, kills, rng, watch):
    done = {'rank': 0, 'supervisor': 0, 'checkpoint': 0}
    attempt, resumes = 1, 0
    while sum(done.values()) < kills:
        inside = done['checkpoint'] == 0
        pids = wait_moment(rig, job, attempt, rng.randrange(1, 6), inside)
        if not pids:
            break
        what = 'supervisor' if rng.random() < 0.3 and not inside else 'rank'
        victim = pids['supervisor'] if what == 'supervisor' else rng.choice(pids['ranks'])
        if inside:
            victim, what = pids['ranks'][0], 'checkpoint'
        if kill(victim):
            done[what] += 1
        attempt, resumed = wait_next(rig, job, attempt, watch)
        resumes += resumed
        if attempt == 0:
            break
    return done, resumes


def main():
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 32)
    rig = Rig(sys.argv[1])
    print(f'seed {seed}')
    began = time.monotonic()
    try:
        rig.up()
        calm = start(rig, 'a')
        assert rig.wait_state(calm, {'COMPLETED', 'FAILED'}) == 'COMPLETED', rig.show(calm)
        job = start(rig, 'b')
        watch = Watch(rig, job)
        done, resumes = disturb(rig, job, kills, random.Random(seed), watch)
        assert rig.wait_state(job, {'COMPLETED', 'FAILED', 'NODE_FAIL'}) == 'COMPLETED', rig.show(job)
        rewinds = check(rig, calm, job, done, kills, watch.rows())
        print(f'{done} kills, {resumes} resumes by hand, {rig.show(job)["attempt"]} attempts, {rewinds} rewinds seen: '
              f'the same bytes and rows; {time.monotonic() - began:.0f} s')
    finally:
        rig.close()


def check(rig, calm, job, done, kills, watched):
    assert sum(done.values()) == kills, f'only {done} of {kills} kills before the run was over'
    for name in ('adapter_model.safetensors', 'adapter_config.json'):
        a, b = ((rig.dir / run / name).read_bytes() for run in 'ab')
        assert a == b, f'{name} differs'
    a, b = comparable(rig.metrics(calm)), comparable(rig.metrics(job))
    assert a == b, f'live rows differ: {len(a)} and {len(b)}'
    top = [json.loads(line) for line in (rig.dir / 'b/metrics.jsonl').read_text().splitlines()]
    assert comparable(top) == a, 'metrics.jsonl differs from the live rows'
    rewinds = sum(row['kind'] == 'rewind' for rows in watched for row in rows)
    assert rewinds, 'the watcher saw no rewind'
    live = []
    for row in watched[-1]:
        if row['kind'] == 'rewind':
            live = [r for r in live if r['global_step'] <= row['global_step']]
        else:
            live.append(row)
    assert comparable(live) == a, 'what the watcher saw is not the live rows'
    return rewinds


main()
