#!/usr/bin/env python3
"""count.py BUILD... - adds up the results of the last `meson test` of each build
and prints `N passed, N failed, N skipped`; exits 1 if any failed or none ran."""
import json
import sys
from pathlib import Path

passed = failed = skipped = 0
for build in sys.argv[1:]:
    log = Path(build, "meson-logs", "check.json")
    if not log.exists():
        print(f"{log}: no test of this build ran")
        failed += 1
        continue
    for line in log.read_text().splitlines():
        result = json.loads(line)["result"]
        if result in ("OK", "EXPECTEDFAIL"):
            passed += 1
        elif result == "SKIP":
            skipped += 1
        else:
            failed += 1
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(failed != 0 or passed == 0)
