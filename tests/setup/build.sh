#!/bin/bash
# build.sh BUILD [meson options] [-- targets] - configures once, builds, says little:
# on a terminal ninja's one line, else that it builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$1; shift
options=() targets=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
[ $# -eq 0 ] || targets=("${@:2}")
if [ ! -f "$build/build.ninja" ]; then
  meson setup "$build" "${options[@]}" >"/tmp/alignd-setup.$$.log" 2>&1 ||
    { cat "/tmp/alignd-setup.$$.log"; rm -f "/tmp/alignd-setup.$$.log"; exit 1; }
  rm -f "/tmp/alignd-setup.$$.log"
fi
[ ! -t 1 ] || exec ninja -C "$build" "${targets[@]}"
echo "building in $build"
exec ninja -C "$build" --quiet "${targets[@]}"
