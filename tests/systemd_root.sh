# Starts systemd as the first process of a container: bash systemd_root.sh ROOT SITE PACKAGES PYTHON FILES
# Run it in new namespaces (mount, pid, ipc, uts, net, cgroup); everything that it makes ends with them.
# ROOT is an empty folder. SITE and PACKAGES have the package and its dependencies, PYTHON the interpreter,
# and FILES what the service needs: etc/, units/, and out/, which is written. CONSOLE is a terminal.
set -e
root=$1 site=$2 packages=$3 python=$4 files=$5
mount --make-rprivate /
mount -t tmpfs tmpfs "$root"
cd "$root"
mkdir -p usr etc/systemd/system proc sys dev run tmp var/lib var/tmp root home opt/site opt/packages opt/python mnt old
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$folder"; done
mount --bind /usr usr
mount -o remount,bind,ro usr
mount --bind "$site" opt/site
mount --bind "$packages" opt/packages
mount --bind "$python" opt/python
mount --bind "$files" mnt
mount -t proc proc proc
mount -t sysfs sysfs sys
mountpoint -q sys/fs/cgroup && umount -l sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in null zero full random urandom tty console; do touch "dev/$device"; done
for device in null zero full random urandom tty; do mount --bind "/dev/$device" "dev/$device"; done
mount --bind "$CONSOLE" dev/console
cp /etc/passwd /etc/group /etc/ld.so.cache etc/
cp -r mnt/etc/. etc/
cp -r mnt/units/. etc/systemd/system/
echo 0123456789abcdef0123456789abcdef > etc/machine-id
echo edge > etc/hostname
echo "127.0.0.1 localhost edge" > etc/hosts
pivot_root . old
umount -l /old
mount --make-rshared /  # systemd hands credentials over by a mount
exec env -i container=test PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --unit=test.target
