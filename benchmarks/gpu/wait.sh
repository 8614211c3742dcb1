#!/usr/bin/env bash
# On the GPU host: wait for the measuring, at most so many seconds, and bring what there is to $OUT (one archive, one log).
set -euo pipefail
until=$((SECONDS + ${1:-560}))
while [ ! -e /root/kept/done ] && [ $SECONDS -lt $until ]; do sleep 1; done
cp /root/drive.log "$OUT/drive.log"
tar czf "$OUT/results.tgz" --warning=no-file-changed -C /root kept || [ $? = 1 ] # written meanwhile
tail -40 /root/drive.log
if [ -e /root/kept/done ]; then echo "ALL DONE"; else echo "it goes on: call wait.sh again within 30 s"; fi
