#!/bin/bash
# Boots systemd as the first process of new namespaces: boot.sh DIRECTORY, started by service_test.py.
# DIRECTORY/usr lies over /usr, DIRECTORY/etc over /etc. Nothing else of the machine can be written: what the services write goes to
# memory, and is gone with them. (systemd-tmpfiles empties /tmp at every boot. It must never see the machine's own.)
set -e
directory=$1
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/{etc,var}{,.work}
mount -t overlay overlay -o "lowerdir=$directory/usr:/usr" /usr
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/etc.work /etc
mount -t overlay overlay -o lowerdir=/var,upperdir=/mnt/var,workdir=/mnt/var.work /var
units=/etc/systemd/system
rm -rf $units/*.wants $units/*.requires
cp -r "$directory/etc/." /etc/
mkdir -p $units/multi-user.target.wants
for service in culvertd redis-server nginx; do
    ln -s /usr/lib/systemd/system/$service.service $units/multi-user.target.wants/
done
ln -sf /usr/lib/systemd/system/multi-user.target $units/default.target
for unit in getty.target systemd-{logind,udevd,udev-trigger,networkd,resolved,timesyncd}.service; do
    ln -sf /dev/null "$units/$unit"
done
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t proc proc /proc
# As this machine has its control groups, but with our own as the root.
groups=$(stat -f -c %T /sys/fs/cgroup)
umount -R /sys
mount -t sysfs sysfs /sys
if [ "$groups" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/{systemd,unified}
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
fi
mount -o remount,bind,ro /
exec env -i container=culvert-test PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --system --log-target=console --show-status=no
