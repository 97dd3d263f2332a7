#!/bin/bash
# deps.sh - what building and testing need on Debian 12. Looks first: with every
# package there, apt is never called. Otherwise prints the line and runs it as
# root or by `sudo -n`; else exits 2 with that line.
set -u
packages=(
  meson ninja-build pkg-config gcc g++ libc6-dev python3
  libuv1-dev libnng-dev libmsgpack-dev libjansson-dev libfyaml-dev libsqlite3-dev
  libdnnl-dev libgloo-dev libarchive-dev libpcre2-dev libsentencepiece-dev
  libncurses-dev libcmocka-dev
  clang libclang-rt-14-dev libomp-14-dev
  libc6-dbg # names in glibc, which tests/setup/lsan.supp goes by
)
missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${Status}' "$p" 2>/dev/null)" = "install ok installed" ] || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

line="apt-get install -y --no-install-recommends ${missing[*]}"
echo "Missing packages. Needed:"
echo "  $line"
if [ "$(id -u)" = 0 ]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "Run that line as root, then this again."
  exit 2
fi
export DEBIAN_FRONTEND=noninteractive
start=$SECONDS
"${as_root[@]}" apt-get update -q >/dev/null || exit 2
# shellcheck disable=SC2086
"${as_root[@]}" $line >/tmp/alignd-apt.$$.log 2>&1 || { tail -n 20 /tmp/alignd-apt.$$.log; exit 2; }
rm -f /tmp/alignd-apt.$$.log
echo "Packages installed in $((SECONDS - start)) s (downloads included)."
