#!/usr/bin/env bash
# On the controller (Debian, a network): all that the suite needs on a GPU host without one, in parts that travel one by one.
# usage: carry.sh DEST     DEST/p00, p01, ...: a part of at most 56 MiB of one archive each; DEST/work is kept for the next time
set -euo pipefail
dest=$(realpath -m "${1:?usage: carry.sh DEST}") root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$dest/work"/{wheels,controller,debs,known}
cd "$dest/work"
platforms=()
for minor in $(seq 39 -1 5); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 --platform linux_x86_64)
fetch=(python3 -m pip download -q --no-deps --require-hashes --only-binary=:all: --python-version 3.12 --implementation cp
    --abi cp312 --abi abi3 --abi none "${platforms[@]}")
"${fetch[@]}" -d wheels -r "$root/config/stacks/cuda-x86.lock"
for recipe in probe host-torch; do "${fetch[@]}" -d wheels -r "$root/build/recipes/$recipe.lock"; done
uv=("$root/.venv/bin/uv" --no-config pip compile -q --python-version 3.12 --python-platform x86_64-manylinux_2_39)
"${uv[@]}" --generate-hashes -c "$root/requirements-controller.lock" -o controller.txt "$root/pyproject.toml"
"${fetch[@]}" -d controller -r controller.txt
cp wheels/pip-*.whl controller/
# what a bare Ubuntu container lacks: systemd, nspawn, sshd; without what every system has
depends=(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances)
has='^(libc6|libc-bin|libgcc-s1|gcc-12-base|perl|perl-base|debconf|debconf-2.0|cdebconf|dpkg|base-files|coreutils|bash|dash|libstdc\+\+6|tar|init-system-helpers|passwd|login|adduser|.*:i386|libc6-dev|ucf|sensible-utils|install-info|sed|grep|gzip|findutils|debianutils|hostname|libdb5.3.*|python3.*|libpython.*)$'
(cd debs && "${depends[@]}" systemd systemd-sysv systemd-container dbus openssh-server openssh-client iproute2 rsync git \
    libpam-systemd iputils-ping procps sudo libnuma1 nftables | grep '^\w' | sort -u | grep -v -E "$has" | xargs apt-get download -q)
# what the suite asks dpkg for, and what that needs
(cd known && "${depends[@]}" nftables | grep '^\w' | sort -u | grep -v -E "$has" | xargs apt-get download -q)
PYTHONPATH=$root "$root/.venv/bin/python" -m benchmarks.gpu.extras .
tar cf - wheels controller debs known model | split -b 56M -d - carried.part.
for part in carried.part.*; do mkdir -p "$dest/p${part##*.}"; mv "$part" "$dest/p${part##*.}/"; done
du -sh "$dest"/p*
