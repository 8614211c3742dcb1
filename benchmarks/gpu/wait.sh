#!/usr/bin/env bash
# On the GPU host: wait for the measuring, at most so many seconds, and bring what there is to $OUT (one archive, one log).
set -euo pipefail
until=$((SECONDS + ${1:-560}))
while [ ! -e /root/out/done ] && [ $SECONDS -lt $until ]; do sleep 1; done
cp /root/drive.log "$OUT/drive.log"
tar czf "$OUT/results.tgz" -C /root out
tail -40 /root/drive.log
if [ -e /root/out/done ]; then echo "ALL DONE"; else echo "it goes on: call wait.sh again within 30 s"; fi
