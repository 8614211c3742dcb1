#!/usr/bin/env bash
# On the controller: make what the GPU host needs, in parts that travel one by one.
# usage: prepare.sh PACKED DEST      PACKED: debs/ and wheels/ (vLLM 0.21.0 and what it needs, for CPython 3.12, x86_64,
#                                    without torch and CUDA)
# DEST gets p00, p01, ...: folders of at most 56 MiB with site.part.NN, and pxx with extras/ (packages, model, probes).
set -euo pipefail
packed=$(realpath "${1:?}") dest=$(realpath -m "${2:?}") root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$dest/work" "$dest/pxx/extras"
cd "$dest/work"
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_5_x86_64)
fetch=(python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}")
"${fetch[@]}" -d pyspy py-spy
"${fetch[@]}" -d "$dest/pxx/extras" zstandard
"$root/.venv/bin/uv" pip install -q --no-config --no-index --no-deps --target site --python-version 3.12 \
    --python-platform x86_64-manylinux_2_39 "$packed"/wheels/*.whl pyspy/*.whl
find site -name __pycache__ -prune -exec rm -rf {} +
"$root/.venv/bin/python" - "$dest/work" <<'PY'
import sys, tarfile, zstandard
shape = zstandard.ZstdCompressionParameters.from_level(3, enable_ldm=True, window_log=27, threads=2)
with open(f"{sys.argv[1]}/site.tar.zst", "wb") as raw:
    with zstandard.ZstdCompressor(compression_params=shape).stream_writer(raw) as out:
        with tarfile.open(fileobj=out, mode="w|") as tar:
            tar.add("site")
PY
split -b 56M -d site.tar.zst site.part.
for part in site.part.*; do mkdir -p "$dest/p${part##*.}"; mv "$part" "$dest/p${part##*.}/"; done
cp -r "$packed/debs" "$dest/pxx/extras/"
PYTHONPATH=$root "$root/.venv/bin/python" -m benchmarks.gpu.extras "$dest/pxx/extras"
rm -rf "$dest/work"
du -sh "$dest"/*
