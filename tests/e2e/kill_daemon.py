"""kill_daemon.py BUILD [KILLS [SEED]] - kill -9 of alignd while a gang loads, trains,
evaluates and stops. After each restart the same processes go on under the same attempt;
in the end every report stands in the store once, as the gang wrote it, and a job
disturbed to its end leaves the bytes of an undisturbed one."""
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig, alive, comparable

PHASES = ('CONFIGURING', 'RUNNING', 'evaluation', 'COMPLETING')
LEAST = 10  # kills in each
SETS = ['method=dpo', 'max_steps=24', 'save_steps=6', 'eval_steps=4', 'train_batch_size=4',
        'max_length=128', 'eval={split_from_train: 200}', 'threads_per_device=1']
OVER = {'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL', 'OUT_OF_MEMORY'}


def phase_of(show):
    if show['state'] == 'RUNNING' and show['phase'] == 'evaluating':
        return 'evaluation'
    return show['state']


class Trial:
    def __init__(self, rig, rng):
        self.rig, self.rng = rig, rng
        self.done = dict.fromkeys(PHASES, 0)
        self.pids = {}

    def processes(self, job):
        pids = self.rig.gang(job, 1)
        if pids:
            self.pids.setdefault(job, pids)
            assert pids == self.pids[job], f'job {job}: other processes under the same attempt'
        return self.pids.get(job)

    def kill(self, job, phase):
        """Kills the daemon if the gang is alive in that phase; starts it again."""
        pids = self.processes(job)
        if not pids or not alive(pids['supervisor']):
            return False
        self.rig.kill_daemon()
        self.rig.up()
        show = self.rig.show(job)
        assert show['attempt'] == 1, f'job {job}: attempt {show["attempt"]} after a kill in {phase}'
        if show['state'] not in OVER:
            assert self.processes(job) is pids or self.processes(job) == pids
        self.done[phase] += 1
        return True

    def through(self, job, cancel):
        """Kills along one job's life. A cancel in an evaluation is heard at its end: until
        then the job is COMPLETING, and alignctl waits, over all restarts."""
        asked = None
        left = dict(zip(PHASES, (6, 4, 0, 8) if cancel else (6, 30, 25, 2)))
        end = time.monotonic() + 180
        while time.monotonic() < end:
            show = self.rig.show(job)
            phase = phase_of(show)
            if phase in OVER:
                if asked:
                    out, err = asked.communicate(timeout=30)
                    assert asked.returncode == 0, f'cancel: {asked.returncode} {out}{err}'
                return show
            if cancel and phase == 'evaluation':
                asked = self.rig.ctl_later('cancel', job)
                cancel = False
            elif phase in left and left[phase] > 0 and self.kill(job, phase):
                left[phase] -= 1
                continue
            time.sleep(self.rng.random() * 0.03)
        raise AssertionError(f'job {job} is {show["state"]} for ever')


def check_rows(rig, job, folder):
    """What the store has is what the gang wrote, once and in order."""
    wrote = [json.loads(line) for line in
             (folder / 'attempts/1/metrics.jsonl').read_text().splitlines()]
    has = rig.metrics(job, '--all')
    assert [row['n'] for row in wrote] == list(range(1, len(wrote) + 1))
    assert [row['n'] for row in has] == [row['n'] for row in wrote], 'a report is missing or doubled'
    seqs = [row['seq'] for row in has]
    assert seqs == sorted(set(seqs))
    for a, b in zip(has, wrote):
        a = {k: v for k, v in a.items() if k not in ('seq', 'superseded')}
        b = {k: v for k, v in b.items() if k in a}
        assert a == b, f'{a}\nis not\n{b}'


def main():
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 32)
    print(f'seed {seed}')
    rig = Rig(sys.argv[1])
    trial = Trial(rig, random.Random(seed))
    began = time.monotonic()
    try:
        rig.up()
        calm = rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/calm')
        assert rig.wait_state(calm, OVER) == 'COMPLETED'
        last = rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/last')
        show = trial.through(last, False)
        assert show['state'] == 'COMPLETED', show
        jobs = 2
        while sum(trial.done.values()) < kills or min(trial.done.values()) < LEAST:
            jobs += 1
            job = rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/{jobs}')
            assert job == jobs, f'job {job} is the {jobs}th'
            show = trial.through(job, True)
            assert show['state'] in ('CANCELLED', 'COMPLETED'), show
            assert (Path(show['adapter']) / 'adapter_model.safetensors').exists(), show
            check_rows(rig, job, rig.dir / str(jobs))
        check_rows(rig, last, rig.dir / 'last')
        a, b = ((rig.dir / run / 'adapter_model.safetensors').read_bytes() for run in ('calm', 'last'))
        assert a == b, 'the adapter of the disturbed run differs'
        assert comparable(rig.metrics(calm)) == comparable(rig.metrics(last))
        listed = json.loads(rig.ctl('list', '--all', '--json').stdout)
        print(f'{sum(trial.done.values())} kills {trial.done} over {jobs} jobs, {len(listed)} listed; '
              f'{time.monotonic() - began:.0f} s')
    finally:
        rig.close()


main()
