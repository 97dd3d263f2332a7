#!/bin/bash
# tsan.sh BUILD - the daemon, its store and the wire under ThreadSanitizer: alignd, its players and the
# tests that drive them (about 4 minutes once built). Not the worker: the runtimes of OpenMP and
# Gloo are not instrumented, and what it cannot see it calls a race. Nothing is suppressed.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=$(realpath -m "$1-tsan")
tests=(wire redial codec store launch meeting alignd kills)
targets=(daemon/alignd tests/daemon/play_supervisor)
for t in "${tests[@]}"; do
  for suite in proto daemon; do
    [ -f "tests/$suite/test_$t.c" ] && targets+=("tests/$suite/test_$t")
  done
done
if [ ! -f "$dir/build.ninja" ]; then
  CC=gcc CXX=g++ meson setup "$dir" -Db_sanitize=thread -Db_lundef=false -Dgpu=disabled >/dev/null
fi
ninja -C "$dir" --quiet "${targets[@]}"
rm -f "$dir"/race.*
# The daemon's reports go to files: its own output is the tests' to read.
export TSAN_OPTIONS="second_deadlock_stack=1:exitcode=66:log_path=$dir/race"
bad=0
meson test -C "$dir" --no-rebuild --print-errorlogs -t 6 "${tests[@]}" || bad=1
for report in "$dir"/race.*; do
  [ -f "$report" ] || continue
  cat "$report"
  bad=1
done
[ $bad = 0 ] && echo "no race"
exit $bad
