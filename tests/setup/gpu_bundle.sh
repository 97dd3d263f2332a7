#!/bin/bash
# gpu_bundle.sh BUILD OUT.tar.gz - what a machine with a GPU needs to run alignd and
# tests/gpu/run: programs, kernel modules, the tests' binaries and data, and every shared
# library but glibc's, the driver's and CUDA's. Relocatable: unpack anywhere.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$1 out=$2
limit=$((64 << 20))
name=alignd-gpu
stage=$(mktemp -d /tmp/alignd-bundle.XXXXXX)
trap 'rm -rf "$stage"' EXIT
root=$stage/$name

[ -f "$build/kernels/kn_cuda.so" ] || { echo "gpu-bundle: no nvcc here, so no kn_cuda.so to put in"; exit 2; }
DESTDIR=$stage/install meson install -C "$build" --no-rebuild --quiet
prefix=$(dirname "$(dirname "$(find "$stage/install" -name align-worker -path '*/bin/*')")")
mkdir -p "$root/lib" "$root/tests/bin" "$root/tests/gpu" "$root/tests/data" "$root/docs"
cp -r "$prefix/bin" "$root/bin"
cp -r "$prefix/lib/alignd" "$root/lib/alignd"
for t in kernels/test_cpu kernels/test_rows kernels/test_limits kernels/test_far kernels/test_quant kernels/test_adamw8 kernels/test_adamw8_bnb kernels/sim/test_sim kernels/sim/test_sim_gpu kernels/sim/test_ptx kernels/sim/test_ptx_gpu \
         kernels/sim/test_mma kernels/sim/test_mma_gpu worker/test_coll_nccl gpu/gpu_bench gpu/gpu_model \
         gpu/kn_simplain.so gpu/kn_cudaplain.so; do
  cp "$build/tests/$t" "$root/tests/bin/"
done
cp tests/gpu/run tests/gpu/*.py "$root/tests/gpu/"
cp docs/performance.md docs/GPU.md "$root/docs/" # the predictions, and how to
cp -r tests/data/demo tests/data/tiny64 "$root/tests/data/"
mkdir "$root/tests/data/fixtures"
cp tests/data/fixtures/adamw8.json "$root/tests/data/fixtures/"
cp README.md LICENSE "$root/"

# Their libraries, and those of these. glibc is the host's own; CUDA's are found at run time.
elfs() { find "$root" -type f \( -perm -u+x -o -name '*.so*' \) -exec sh -c 'head -c4 "$1" | grep -q ELF' _ {} \; -print; }
skip='^(linux-vdso|ld-linux|libc|libm|libdl|libpthread|librt|libresolv|libutil|libanl|libnsl|libcuda|libcublas|libcublasLt|libcudart|libnccl|libnvidia)[.-]'
export LD_LIBRARY_PATH=$root/lib
elfs | while read -r f; do ldd "$f" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// {print $3}'; done | sort -u |
while read -r lib; do
  base=$(basename "$lib")
  [[ $base =~ $skip ]] || cp -Ln "$lib" "$root/lib/$base"
done
unset LD_LIBRARY_PATH
elfs | xargs strip --strip-unneeded 2>/dev/null || true

floor=$(elfs | xargs objdump -T 2>/dev/null | grep -o 'GLIBC_2\.[0-9]*' | sort -t. -k2 -n | tail -n 1 | cut -d_ -f2)
cat >"$root/BUNDLE" <<EOF
alignd $(git describe --always --dirty 2>/dev/null || true), x86-64 Linux, glibc $floor or later.
A GPU wants NVIDIA's driver for CUDA 13 (580 or later) and CUDA 13's libcublasLt.so.13, wherever it lies:
the loader's folders, LD_LIBRARY_PATH, CUDA_HOME, /usr/local/cuda*, Python's nvidia wheels; NCCL likewise.

  tests/gpu/run                check and measure (python3 alone is enough)
  tests/gpu/run --device sim   the same checks without a GPU
  bin/alignctl up              use it
EOF
find "$root" -exec touch -d @0 {} +
tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner -cf - "$name" | gzip -9n >"$out"
size=$(stat -c %s "$out")
echo "$out: $((size >> 20)) MiB, $(elfs | wc -l) programs and libraries, glibc $floor or later"
[ "$size" -le "$limit" ] || { echo "gpu-bundle: over $((limit >> 20)) MiB"; exit 1; }
