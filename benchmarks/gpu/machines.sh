#!/usr/bin/env bash
# On a GPU host, as root, with CARRIED/debs: two machines with systemd, sshd and a card each, gx10-beee and gx10-c6fb.
# usage: machines.sh CARRIED
# ssh -i /root/k gx10@192.168.34.100 and .101 (management); 172.16.100.1 and .2 on fab0 (fabric). The root of each is an
# overlay over the host's, so its Python, CUDA and compilers are there. A host with one card gives it to both.
# It changes the host: only for one that is thrown away afterwards.
set -euo pipefail
carried=$(realpath "${1:?usage: machines.sh CARRIED}") unpacked=/opt/unpacked
mkdir -p $unpacked /etc/sudoers.d
for deb in "$carried"/debs/*.deb; do dpkg -x "$deb" $unpacked; done
for folder in lib sbin bin lib64; do # the host's /lib is a link
    if [ -d $unpacked/$folder ] && [ ! -L $unpacked/$folder ]; then
        mkdir -p "$unpacked/usr/$folder"
        cp -an $unpacked/$folder/. "$unpacked/usr/$folder/"
        rm -rf "${unpacked:?}/$folder"
    fi
done
cp -a --update=none $unpacked/. / # what the host has wins
ldconfig
setcap cap_net_raw+ep "$(command -v ping)" # unpacking loses it
# what the suite asks dpkg for
for deb in $(find "$carried" -path '*/known/*.deb'); do
    name=$(dpkg-deb -f "$deb" Package)
    dpkg-query -W "$name" >/dev/null 2>&1 || dpkg -i --force-depends --force-confold "$deb" >/dev/null
done
mount -t tmpfs tmpfs /run # nspawn refuses a /run that is on a disk
mkdir -p /run/sshd
systemd-id128 new >/etc/machine-id
systemd-sysusers
id sshd >/dev/null 2>&1 || useradd -r -d /run/sshd -s /usr/sbin/nologin sshd
useradd -m -s /bin/bash -p '*' gx10
echo 'gx10 ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/gx10
ssh-keygen -q -t ed25519 -N '' -f /root/k
install -d -m 700 /home/gx10/.ssh
cp /root/k.pub /home/gx10/.ssh/authorized_keys
chown -R gx10 /home/gx10
printf 'PermitRootLogin no\nPasswordAuthentication no\nUsePAM yes\nSubsystem sftp internal-sftp\n' >/etc/ssh/sshd_config
systemctl --root=/ enable ssh systemd-networkd
ip link add brm type bridge && ip addr add 192.168.34.1/24 dev brm && ip link set brm up
ip link add brf type bridge && ip link set brf up
cards=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | wc -l) number=0
for host in gx10-beee gx10-c6fb; do
    place=/opt/machines/$host root=/opt/machines/$host/root
    mkdir -p $place/up $place/work $root
    mount -t overlay overlay -o lowerdir=/,upperdir=$place/up,workdir=$place/work $root
    echo $host >$root/etc/hostname
    echo "127.0.1.1 $host" >>$root/etc/hosts
    systemd-id128 new >$root/etc/machine-id
    rm -f $root/etc/ssh/ssh_host_* # each has its own
    ssh-keygen -A -f $root >/dev/null
    mkdir -p $root/etc/systemd/network
    printf '[Match]\nName=host0\n[Network]\nAddress=192.168.34.10%s/24\n' $number >$root/etc/systemd/network/10-management.network
    printf '[Match]\nName=fab0\n[Network]\nAddress=172.16.100.%s/24\n' $((number + 1)) >$root/etc/systemd/network/20-fabric.network
    card=$((number < cards ? number : 0))
    setsid systemd-nspawn -D $root --boot --register=no --keep-unit -M $host --network-bridge=brm \
        --network-veth-extra=fab$number:fab0 --bind=/dev/nvidia$card --bind=/dev/nvidiactl --bind=/dev/nvidia-uvm \
        --bind=/dev/nvidia-uvm-tools --bind-ro=/usr/local/nvidia >$place/console.log 2>&1 </dev/null &
    number=$((number + 1))
done
for ((waited = 0; waited < 60; waited++)); do
    [ -e /sys/class/net/fab0 ] && [ -e /sys/class/net/fab1 ] && break
    sleep 0.5
done
ip link set fab0 master brf up
ip link set fab1 master brf up
for address in 192.168.34.100 192.168.34.101; do
    for ((waited = 0; waited < 120; waited++)); do
        ssh-keyscan -T 2 -t ed25519 $address 2>/dev/null | grep -q ed25519 && break
        sleep 0.5
    done
done
