#!/usr/bin/env bash
# On the GPU host, as root, in the project's root: unpack what was carried, make the machines, let the suite drive them.
# usage: suite.sh SECONDS      $PARTS (default /opt/parts) holds carried.part.* (carry.sh makes them)
set -euo pipefail
seconds=${1:?usage: suite.sh SECONDS} parts=${PARTS:-/opt/parts} here=$PWD/benchmarks/gpu began=$SECONDS
mkdir -p /opt/carried /root/kept
cat "$parts"/carried.part.* | tar xf - -C /opt/carried
cp -r /opt/carried/model /opt/
chmod -R a+rX /opt/model
echo "unpacked after $((SECONDS - began)) s"
bash "$here/machines.sh" /opt/carried
echo "machines after $((SECONDS - began)) s"
python3 -m zipfile -e /opt/carried/controller/uv-*.whl /opt/uv
uv=$(echo /opt/uv/uv-*.data/scripts/uv)
chmod +x "$uv"
"$uv" --no-config venv -q --python /usr/bin/python3.12 .venv
"$uv" --no-config pip install -q --python .venv --no-index --no-deps /opt/carried/controller/*.whl
echo "the suite's environment after $((SECONDS - began)) s"
# what is fetched is fetched from what was carried
export PIP_NO_INDEX=1 PIP_FIND_LINKS=/opt/carried/wheels
cards=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | wc -l)
setsid .venv/bin/python -u -m benchmarks.gpu.whole /root/kept --seconds "$seconds" --cards "$cards" >/root/drive.log 2>&1 </dev/null &
bash "$here/wait.sh" $((540 - (SECONDS - began)))
