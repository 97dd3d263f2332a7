#!/usr/bin/env python3
"""count.py BUILD... - adds up the results of the last `meson test` of each build and prints
`N passed, N failed, N skipped`; exits 1 if any failed or none ran. A test that a program
skipped by itself counts as skipped, and is named, beside the program that passed."""
import json
import re
import sys
from pathlib import Path

# cmocka: a line when it happens, and one in the list at the end
SKIPPED = re.compile(r'^\[  SKIPPED \] (\w+)$', re.MULTILINE)


def count(builds, out=print):
    passed = failed = skipped = 0
    for build in builds:
        log = Path(build, 'meson-logs', 'check.json')
        if not log.exists():
            out(f'{log}: no test of this build ran')
            failed += 1
            continue
        for line in log.read_text().splitlines():
            test = json.loads(line)
            if test['result'] in ('OK', 'EXPECTEDFAIL'):
                passed += 1
            elif test['result'] == 'SKIP':
                skipped += 1
                out(f'skipped: {test["name"]}')
            else:
                failed += 1
            inside = set(SKIPPED.findall((test.get('stdout') or '') + '\n' + (test.get('stderr') or '')))
            skipped += len(inside)
            for name in sorted(inside):
                out(f'skipped: {test["name"]}: {name}')
    return passed, failed, skipped


if __name__ == '__main__':
    passed, failed, skipped = count(sys.argv[1:])
    print(f'{passed} passed, {failed} failed, {skipped} skipped')
    sys.exit(failed != 0 or passed == 0)
