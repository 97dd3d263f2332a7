#!/bin/bash
# bare.sh [DIR] - opt-in, as root: debootstraps a bare Debian 12 into DIR (default:
# a temporary folder), copies a clone of this repository in, and runs `make demo`
# and `make check` there as a newcomer would. Needs debootstrap and a mirror
# (MIRROR, default: the one this machine's apt uses).
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "bare.sh: debootstrap and chroot need root"; exit 2; }
command -v debootstrap >/dev/null || { echo "apt-get install -y debootstrap"; exit 2; }

dir=${1:-$(mktemp -d /tmp/alignd-bare.XXXXXX)}
mirror=${MIRROR:-$(apt-cache policy | awk '/bookworm\/main/ {print $2; exit}')}
done_with() {
  for m in dev/pts dev proc; do
    if mountpoint -q "$dir/$m"; then umount "$dir/$m" || umount -l "$dir/$m"; fi
  done
}
trap done_with EXIT

[ -e "$dir/etc/debian_version" ] || debootstrap --variant=minbase --include=ca-certificates,git,make \
  bookworm "$dir" "$mirror" >"$dir.log" 2>&1 || { tail -n 20 "$dir.log"; exit 1; }
for f in /etc/resolv.conf /etc/hosts; do cp -L "$f" "$dir$f"; done
for conf in /etc/apt/apt.conf.d/*; do
  grep -qsi 'proxy\|CAInfo\|Verify' "$conf" && cp "$conf" "$dir/etc/apt/apt.conf.d/"
done || true
[ -d /etc/ssl/certs ] && cp -rL /etc/ssl/certs/ca-certificates.crt "$dir/etc/ssl/certs/"
mount -t proc proc "$dir/proc"
mount --bind /dev "$dir/dev"
mount --bind /dev/pts "$dir/dev/pts"

rm -rf "$dir/src"
git clone -q --no-hardlinks . "$dir/src"
start=$SECONDS
chroot "$dir" /usr/bin/env -i HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
  bash -c 'cd /src && make demo'
echo "bare: make demo took $((SECONDS - start)) s"
start=$SECONDS
chroot "$dir" /usr/bin/env -i HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
  bash -c 'cd /src && make check'
echo "bare: make check took $((SECONDS - start)) s"
