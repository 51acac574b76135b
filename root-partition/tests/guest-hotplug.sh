# Disks come to a guest that runs and go from it, also with I/O under way and when the daemon was killed
# in between. The stock kernel needs no option for it. What is refused leaves nothing behind.
# timeout: 900
. /lib/testing.sh
yes "of the first" | head -c 16777216 >data.raw
vmctl disk create base.qcow2 64M >/dev/null || fail "no base"
vmctl disk create top.qcow2 64M --backing base.qcow2 >/dev/null || fail "no overlay"

# attached NAME: a disk with this serial number is there, in the guest.
script='at() { for d in /sys/block/vd?; do [ "$(cat $d/serial)" = "$1" ] && echo ${d##*/}; done; }'
up demo --set vcpus=2
tell demo "$script"
answer demo "none" 'echo none$(ls -d /sys/block/vd? 2>/dev/null)'

# A disk comes, is read and written.
expect "demo: disk data attached" vmctl attach demo disk data.raw --set serial=D1
tell demo 'until [ "$(at D1)" ]; do usleep 100000; done; echo ca""me'
eventually 60 printed demo '^came.$'
answer demo "of the first" 'head -n 1 /dev/$(at D1)'
answer demo "queues 2" 'echo queues $(ls /sys/block/$(at D1)/mq | wc -l)'
answer demo "written" 'echo "by the guest" | dd of=/dev/$(at D1) conv=fsync,notrunc 2>/dev/null && echo written'
expect "by the guest" head -n 1 data.raw
expect "data            /root/data.raw; 16M, read " vmctl info demo
refuse "data.raw: in use by another VM" vmctl disk resize data.raw 32M

# An overlay comes with its backing file, past the page cache.
expect "demo: disk top attached" vmctl attach demo disk top.qcow2 --set serial=D2 --set cache=none
tell demo 'until [ "$(at D2)" ]; do usleep 100000; done; mke2fs -F /dev/$(at D2) >/dev/null && mkdir /mnt2 && mount -t ext4 /dev/$(at D2) /mnt2 && echo mou""nted'
eventually 60 printed demo '^mounted.$'
tell demo 'dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null; sum=$(md5sum </tmp/data); cp /tmp/data /mnt2/data; sync'
expect "top             /root/top.qcow2 over /root/base.qcow2; 64M" vmctl info demo

# What is refused.
refuse "two disks use /root/data.raw" vmctl attach demo disk data.raw --name other
refuse "missing.raw: no such file" vmctl attach demo disk missing.raw
refuse "in use by another VM" vmctl attach demo disk base.qcow2
refuse "no disk or NIC has the name" vmctl detach demo other
expect "demo: paused" vmctl pause demo
refuse "vmctl resume demo" vmctl detach demo data
expect "demo: running" vmctl resume demo

# The daemon dies. The next one knows the disks, and takes one off while the guest writes to it.
kill_daemon
start_daemon
tell demo 'while dd if=/dev/zero of=/dev/$(at D1) bs=1M count=8 conv=fsync,notrunc; do :; done 2>/dev/null & echo wri""ting'
eventually 30 printed demo '^writing.$'
expect "demo: data detached" vmctl detach demo data
answer demo "gone" 'wait; [ -z "$(at D1)" ] && echo gone'
expect "data.raw" vmctl disk resize data.raw 32M

# It comes back at its new size, and so do others, many times; nothing is left of those that went.
expect "demo: disk data attached" vmctl attach demo disk data.raw --set serial=D3
tell demo 'until [ "$(at D3)" ]; do usleep 100000; done; echo 32""M $(cat /sys/block/$(at D3)/size)'
eventually 60 printed demo '^32M 65536.$'
files=$(ls /proc/"$(worker demo)"/fd | wc -l)
for round in $(seq 8); do
    expect "demo: data detached" vmctl detach demo data
    expect "demo: disk data attached" vmctl attach demo disk data.raw --set "serial=R$round"
    tell demo "until [ \"\$(at R$round)\" ]; do usleep 100000; done; echo rou\"\"nd $round"
    eventually 60 printed demo "^round $round.\$"
done
[ "$(ls /proc/"$(worker demo)"/fd | wc -l)" -le "$files" ] || fail "files are left open"

# A file system that was used all the time lost nothing.
answer demo "same" 'echo 3 >/proc/sys/vm/drop_caches; [ "$(md5sum </mnt2/data)" = "$sum" ] && umount /mnt2 && echo same'

# The definition has the disks: also after a new start.
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
expect "top             /root/top.qcow2" vmctl info demo
start demo
answer demo "two" '[ "$(cat /sys/block/vd?/serial | tr -d "\n")" = D2R8 ] && echo two'
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
expect "demo: top detached" vmctl detach demo top
expect "demo: disk new attached" vmctl attach demo disk base.qcow2 --name new --readonly
start demo
answer demo "ro 0 1" 'echo ro $(cat /sys/block/vd?/ro)'
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
