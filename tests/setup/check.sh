#!/bin/bash
# check.sh BUILD - every test. Three builds: plain; ASan + UBSan; clang with
# libFuzzer, whose targets replay their corpora. The last line counts them all.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=$1
start=$SECONDS
bad=0

suite() { # name, folder, meson test options
  local name=$1 dir=$2; shift 2
  echo "== $name"
  meson test -C "$dir" --no-rebuild --print-errorlogs --logbase "check" "$@" || bad=1
}

tests/setup/build.sh "$build" || exit 1
CC=gcc CXX=g++ tests/setup/build.sh "$build-asan" -Db_sanitize=address,undefined -Db_lundef=false -Dgpu=disabled ||
  exit 1
CC=clang CXX=clang++ tests/setup/build.sh "$build-fuzz" -Dfuzz=true -Db_lundef=false -Dwerror=false -Dgpu=disabled || exit 1
echo "built in $((SECONDS - start)) s"

# Folders of tests that were killed: no test runs for a day.
find /tmp -maxdepth 1 -type d -user "$(id -u)" -mmin +1440 -regextype posix-extended \
  -regex '/tmp/alignd-(test|e2e|sim|memory|stopped|bad|ranks|run|bench|try)-[A-Za-z0-9_]+' -exec rm -rf {} + || true

suite "plain" "$build"
export ASAN_OPTIONS=detect_stack_use_after_return=1:abort_on_error=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
# use_tls=0: in programs that open modules and have threads of an OpenMP runtime, the
# leak checker's walk over thread-local storage crashes now and then at the end.
export LSAN_OPTIONS=suppressions=$PWD/tests/setup/lsan.supp:print_suppressions=0:use_tls=0
# The kill tests are about processes, not memory: once is enough (of kill_submit, 20 kills more).
suite "ASan and UBSan" "$build-asan" --no-suite tidy --no-suite faults --no-suite mutants -t 6
suite "fuzz corpora" "$build-fuzz" --suite fuzz

echo "checked in $((SECONDS - start)) s"
python3 tests/setup/count.py "$build" "$build-asan" "$build-fuzz" || bad=1
exit $bad
