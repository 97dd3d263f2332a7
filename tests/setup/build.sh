#!/bin/bash
# build.sh BUILD [meson options] - configures once, builds, says little.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$1; shift
if [ ! -f "$build/build.ninja" ]; then
  meson setup "$build" "$@" >"/tmp/alignd-setup.$$.log" 2>&1 ||
    { cat "/tmp/alignd-setup.$$.log"; rm -f "/tmp/alignd-setup.$$.log"; exit 1; }
  rm -f "/tmp/alignd-setup.$$.log"
fi
ninja -C "$build" --quiet
