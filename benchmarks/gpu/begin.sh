#!/usr/bin/env bash
# On the GPU host, as root, in the project's root: unpack what was carried, start the two machines and the measuring, wait.
# usage: begin.sh SECONDS [words for benchmarks.gpu.drive]     SECONDS: how long the measuring may take in all
# $PARTS (default /opt/parts) holds site.part.*, extras/ (README.md says how they are made).
set -euo pipefail
seconds=${1:?usage: begin.sh SECONDS}; shift
parts=${PARTS:-/opt/parts} python=/opt/torch/.venv/bin/python3 here=$PWD/benchmarks/gpu began=$SECONDS
mkdir -p /opt/zstd /root/kept
"$python" -m zipfile -e "$parts"/extras/zstandard-*.whl /opt/zstd
cat "$parts"/site.part.* | PYTHONPATH=/opt/zstd "$python" -c '
import sys, tarfile, zstandard
with zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(sys.stdin.buffer) as raw:
    tarfile.open(fileobj=raw, mode="r|").extractall("/opt", filter="fully_trusted")'
echo "unpacked after $((SECONDS - began)) s"
# machines cannot write there, so each process would compile; some files of packages are templates, for which it ends with 1
"$python" -m compileall -q -j 0 /opt/site >/dev/null 2>&1 || [ $? = 1 ]
cp -r "$parts/extras/model" "$parts/extras/probes" /opt/
cp -r build/sources/probe /opt/probe
cp "$here/client.py" /opt/
chmod -R a+rX /opt/site /opt/model /opt/client.py
echo "compiled after $((SECONDS - began)) s"
bash "$here/machines.sh" "$parts/extras"
echo "machines after $((SECONDS - began)) s"
setsid "$python" -u -m benchmarks.gpu.drive /root/kept --seconds "$seconds" "$@" >/root/drive.log 2>&1 </dev/null &
bash "$here/wait.sh" $((560 - (SECONDS - began)))
