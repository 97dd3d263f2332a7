"""test_count.py PROGRAM - the last line of `make check` counts what a program skipped by
itself. PROGRAM is skips_some."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from count import count

done = subprocess.run([sys.argv[1]], capture_output=True, text=True)
assert done.returncode == 0, done
with tempfile.TemporaryDirectory(dir='/tmp') as folder:
    logs = Path(folder, 'meson-logs')
    logs.mkdir()
    rows = [{'name': 'a', 'result': 'OK', 'stdout': done.stdout, 'stderr': done.stderr}, {'name': 'b', 'result': 'SKIP'},
            {'name': 'c', 'result': 'FAIL', 'stdout': ''}, {'name': 'd', 'result': 'OK'}]
    (logs / 'check.json').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    said = []
    passed, failed, skipped = count([folder], said.append)
    assert (passed, failed, skipped) == (2, 1, 3), (passed, failed, skipped)
    assert said == ['skipped: a: nor_here', 'skipped: a: not_here', 'skipped: b'], said
    assert count([folder + '/none'], said.append) == (0, 1, 0)
