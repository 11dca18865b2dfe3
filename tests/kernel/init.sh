#!/bin/sh
# The guest's whole userland: mounts, modules, an address, then commands from the host over the virtio-serial port.
# A request is one line, "ID BASE64-OF-A-SHELL-SCRIPT"; an answer is "ID EXIT-STATUS LENGTH", a newline, then the output.
# Each request runs in its own process, so one stuck in the kernel does not silence the rest.
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /data
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
modprobe -a virtio_pci virtio_net virtio_console virtio_rng crc32c_intel configfs nvme_tcp 2>/run/modprobe.log
mount -t configfs configfs /sys/kernel/config
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
echo nqn.2014-08.org.nvmexpress:uuid:5f9cbdd6-62a2-4a1c-9b0e-6d3f0c2a7e11 >/etc/nvme/hostnqn
echo 5f9cbdd6-62a2-4a1c-9b0e-6d3f0c2a7e11 >/etc/nvme/hostid

until port=$(ls /dev/vport*p1 2>/dev/null); do usleep 20000; done
exec 3<>$port
printf '0 0 0\n' >&3
while read -r id script <&3; do
    (
        echo "$script" | base64 -d >/run/$id
        sh /run/$id </dev/null >/run/$id.out 2>&1 3<&- 9<&-
        status=$?
        flock 9
        printf '%s %s %s\n' $id $status $(stat -c %s /run/$id.out) >&3
        cat /run/$id.out >&3
        rm /run/$id /run/$id.out
    ) 9>/run/lock &
done
echo o >/proc/sysrq-trigger
sleep 60
