#!/usr/bin/env python3
"""bugs.py BUGS_ASAN BUGS_RACE - runs the 44 planted bugs under both builds and several
thread orders; every bug must be caught by at least one configuration, and each run of
the correct twin (bug 0) by none."""
import os
import subprocess
import sys

ASAN, RACE = sys.argv[1:3]
BUGS = 44
CONFIGS = [(ASAN, {"CUSIM_SCHED": "fwd"}), (RACE, {"CUSIM_SCHED": "fwd"}),
           (ASAN, {"CUSIM_SCHED": "rev"}),
           (ASAN, {"CUSIM_SCHED": "rnd:1", "CUSIM_STREAM": "lazy", "CUSIM_PROTECT": "1"}),
           (ASAN, {"CUSIM_SCHED": "rnd:2", "CUSIM_STREAM": "rnd", "CUSIM_PROTECT": "1"})]


def caught(program, env, bug):
    full = dict(os.environ, ASAN_OPTIONS="detect_leaks=0", UBSAN_OPTIONS="halt_on_error=1", **env)
    try:
        run = subprocess.run([program, str(bug)], env=full, capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "hang"
    out = (run.stdout + run.stderr).decode(errors="replace")
    for word, name in [("RACECHECK", "race"), ("runtime error", "ubsan"),
                       ("AddressSanitizer", "asan"), ("CUSIM ERROR", "sim"), ("CUSIM: ", "api")]:
        if word in out:
            return name
    return "wrong" if run.returncode else ""


alarms = [by for program, env in CONFIGS if (by := caught(program, env, 0))]
if alarms:
    print(f"false alarms on correct code: {alarms}")
missed = []
for bug in range(1, BUGS + 1):
    by = ""
    for program, env in CONFIGS:
        by = caught(program, env, bug)
        if by:
            break
    print(f"bug {bug:2d}: {by or 'MISSED'}")
    if not by:
        missed.append(bug)
print(f"{BUGS - len(missed)} of {BUGS} caught")
sys.exit(bool(missed or alarms))
