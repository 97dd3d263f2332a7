#!/usr/bin/env python3
"""mutants.py - does the simulator notice? Named faults are put into a copy of the core,
one at a time, each a substitution in one place; the simulator must fail on every one
and pass on the unchanged copy.

    mutants.py SOURCE_ROOT TEMP_DIR CC... -- LINK_ARGS...

Prints a line per mutant; exits 1 if one survives or no longer applies."""
import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path

# name: (file, what is there, what the mutant has)
MUTANTS = {
    'answered_before_it_is_stored': (
        'core_client.c', 'reply(ev, fx, code, job, text, false);\n}\n\n/* Has it',
        'reply(ev, fx, code, job, text, true);\n}\n\n/* Has it'),
    'repeated_request_acts_twice': (
        'core_client.c', 'request_find(&c->requests, ev->req.uid, ev->req.id);',
        'c->stopping ? request_find(&c->requests, ev->req.uid, ev->req.id) : NULL;'),
    'job_id_not_advanced_on_disk': (
        'core.c', 'event_add(fx, FX_META)->meta = c->meta;',
        'event_add(fx, FX_META)->meta = *w;'),
    'attempt_not_compared': (
        'core_live.c', 'c->live[i]->row.job == job && c->live[i]->row.attempt == attempt',
        'c->live[i]->row.job == job && attempt'),
    'token_not_compared': (
        'core_worker.c', 'ev->worker.token_ok ? core_gang_find', '1 ? core_gang_find'),
    'exit_zero_before_started_fails': (
        'core_gang.c', '(x->code == JOB_EXIT_DONE && x->signal == 0)',
        '(x->code == JOB_EXIT_DONE && x->signal == 0 && j->state != JOB_CONFIGURING)'),
    'late_cancel_beats_result': (
        'core_gang.c', 'if (j->published || (x->code == JOB_EXIT_DONE',
        'if (j->want == JOB_WANT_RUN && (x->code == JOB_EXIT_DONE'),
    'stop_not_repeated_after_restart': (
        'core_gang.c', 'case EV_GANG_ALIVE:\n        tell_want(c, l, fx);',
        'case EV_GANG_ALIVE:'),
    'stop_never_becomes_a_kill': (
        'core_gang.c', '(l->kill_ns == 0 && past(c, l->stop_ns, CORE_STOP_S))', 'false'),
    'lost_gang_retried_for_ever': ('core_gang.c', 'j->lost++;', ''),
    'left_reports_not_sent': (
        'core_gang.c', 'if (l->draining) {\n        core_gang_exited(c, l, x, fx);',
        'if (1) {\n        core_gang_exited(c, l, x, fx);'),
    'gap_in_reports_accepted': (
        'core_worker.c', 'if (n > p->last_report + 1)', 'if (n > p->last_report + 2)'),
    'report_taken_twice': (
        'core_worker.c', 'if (n <= p->last_report)', 'if (n < p->last_report)'),
    'no_rewind': ('core_worker.c', 'if (attempt > 1) {', 'if (attempt > 100) {'),
    'seq_given_twice': ('core_worker.c', '.seq = ++j->seq, .attempt', '.seq = j->seq, .attempt'),
    'devices_not_held_after_restart': ('core_restore.c', 'd->job = row->job;', ''),
    'placed_before_reconciled': (
        'core.c', 'if (!c->reconciled || c->store_full', 'if (c->store_full'),
    'requeued_job_forgotten': ('core.c', '    end_waits(c);\n    if (', '    if ('),
    'fault_not_stored': ('core_device.c', 'd->fault = ev->code;\n    core_write_device(c, d, fx);',
                         'd->fault = ev->code;'),
    'gang_trains_on_after_a_fault': (
        'core_fault.c', 'event_add(fx, FX_KILL)->gang_ref =\n        (struct fx_gang_ref){.job',
        '(void)(struct fx_gang_ref){.job'),
    'gang_trains_on_after_fault_and_restart': (
        'core_gang.c', 'tell_want(c, l, fx);\n        core_fault_adopt(c, l, fx);',
        'tell_want(c, l, fx);'),
    'job_fails_for_a_fault': (
        'core_gang.c', 'if (faulted)\n        return fault_verdict(j);', ''),
    'failed_before_its_gpu_is_blamed': (
        'core_worker.c', 'if (core_fault_awaited(c, l, &ev->exit_record, fx))', 'if (0)'),
    'faulted_device_given_out': ('place.c', 'return d->fenced || d->unfit || d->fault;',
                                 'return d->fenced || d->unfit;'),
    'foreign_gpu_given_out_at_once': (
        'core_device.c', 'if (foreign || d->type != JOB_GPU || !d->foreign)', 'if (1)'),
    'forgotten_before_it_is_durable': ('core_recall.c', 'n->job.ended_s < durable_s &&', ''),
    'answer_forgotten_before_it_is_durable': (
        'core_recall.c', ' || row->age_s >= s->durable_s', ''),
    'answer_about_a_job_dropped': ('core_recall.c', 'if (is_job(s->c, row->job))', 'if (0)'),
    'recalled_job_without_its_reports': (
        'core_recall.c', '{a->last_report, a->resume_step, a->exit_known}', '{.resume_step = -1}'),
    'recall_of_what_is_known': ('core_recall.c', '!core_forgotten(c, row->id) || ', ''),
    'resumed_job_forgotten': ('core.c', 'n->job.ended_s = -1;', ';'),
    'newest_row_thinned': ('thin.c', ' || n + 3 > last', ''),
    'output_dir_shared': ('core_client.c', 'if (!owner)\n        return false;',
                          'return false;'),
}
CORE = ['core.c', 'core_client.c', 'core_device.c', 'core_fault.c', 'core_gang.c', 'core_jobs.c',
        'core_live.c', 'core_recall.c', 'core_restore.c', 'core_view.c',
        'core_worker.c', 'event.c', 'fault.c', 'job.c', 'place.c', 'queue.c', 'request.c', 'thin.c']
SIM = ['disk.c', 'gangs.c', 'world.c', 'test_core_sim.c']
SEEDS = 3000


def main():
    root, temp = Path(sys.argv[1]), Path(sys.argv[2])
    at = sys.argv.index('--')
    cc, link = sys.argv[3:at], sys.argv[at + 1:]
    temp.mkdir(parents=True, exist_ok=True)
    flags = ['-std=gnu11', '-D_GNU_SOURCE', '-O1', '-w', f'-I{root}']

    def compile_one(source, out):
        subprocess.run([*cc, *flags, '-c', str(source), '-o', str(out)], check=True)
        return out

    def run(objects, name):
        exe = temp / f'sim_{name}'
        subprocess.run([*cc, *map(str, objects), '-o', str(exe), *link], check=True)
        env = dict(os.environ, ALIGND_SEEDS=str(SEEDS))
        env.pop('ALIGND_SEED', None)
        r = subprocess.run([str(exe)], env=env, capture_output=True, text=True)
        exe.unlink()
        what = [l for l in (r.stdout + r.stderr).splitlines()
                if 'ERROR' in l or l.startswith('replay') or 'Segmentation' in l]
        return r.returncode, ' '.join(what[:2]).replace('[  ERROR   ] --- ', '')

    def mutant(name):
        file, old, new = MUTANTS[name]
        text = (root / 'daemon' / file).read_text()
        if text.count(old) != 1:
            return name, False, f'{file}: its place is there {text.count(old)} times, not once'
        source = temp / f'{name}.c'
        source.write_text(text.replace(old, new))
        objects = dict(base)
        objects[file] = compile_one(source, temp / f'{name}.o')
        code, what = run(objects.values(), name)
        return name, code != 0, what

    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        files = {f: root / 'daemon' / f for f in CORE}
        files.update({f: root / 'tests/sim' / f for f in SIM}, **{'err.c': root / 'proto/err.c'})
        jobs = {f: pool.submit(compile_one, p, temp / f'base_{p.stem}.o')
                for f, p in files.items()}
        base = {f: j.result() for f, j in jobs.items()}
        code, what = run(base.values(), 'unchanged')
        print(f'{"unchanged":34} {"passes" if code == 0 else "FAILS"} {what}', flush=True)
        survivors = int(code != 0)
        for name, caught, what in pool.map(mutant, MUTANTS):
            print(f'{name:34} {"caught" if caught else "SURVIVES"}  {what}', flush=True)
            survivors += not caught
    print(f'{len(MUTANTS)} mutants, {survivors} not caught, {time.monotonic() - begin:.0f} s')
    return 1 if survivors else 0


sys.exit(main())
