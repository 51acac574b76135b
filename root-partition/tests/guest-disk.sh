# A guest's stock drivers find its disks, raw and qcow2, write, flush and read them back. A read-only
# disk is not written, an image has one user, discarded blocks are freed, and a killed worker loses no
# write that was acknowledged.
# timeout: 900
. /lib/testing.sh
vmctl disk create plain.raw 64M >/dev/null || fail "no raw image"
vmctl disk create grows.qcow2 64M >/dev/null || fail "no qcow2 image"
yes "read only" | dd of=fixed.raw bs=1M count=1 iflag=fullblock 2>/dev/null
{
    cat demo.toml
    printf '[[disk]]\npath = "plain.raw"\nserial = "PLAIN-1"\nqueues = 2\n'
    printf '[[disk]]\npath = "grows.qcow2"\ncache = "none"\n'
    printf '[[disk]]\npath = "fixed.raw"\nreadonly = true\n'
} >disks.toml
expect "demo: defined" vmctl create disks.toml --set vcpus=2
start demo

# Identity, as stock drivers see it.
answer demo "vda 131072" 'echo vda $(cat /sys/block/vda/size)'
answer demo "vdb 131072" 'echo vdb $(cat /sys/block/vdb/size)'
answer demo "serial PLAIN-1" 'echo serial $(cat /sys/block/vda/serial)'
answer demo "queues 2" 'echo queues $(ls /sys/block/vda/mq | wc -l)'
answer demo "ro 0 0 1" 'echo ro $(cat /sys/block/vd?/ro)'
answer demo "msi yes" 'grep -q "PCI-MSIX.*virtio.-req" /proc/interrupts && echo msi yes'
answer demo "rng virtio_rng.0" 'echo rng $(cat /sys/class/misc/hw_random/rng_current)'
answer demo "random 32" 'echo random $(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c)'

# Files of its own, on both formats, through a file system of the guest's.
tell demo 'for d in a b; do mkdir /mnt$d; mke2fs -F /dev/vd$d >/dev/null && mount -t ext4 /dev/vd$d /mnt$d; done'
answer demo "mounted 2" 'echo mounted $(grep -c "^/dev/vd" /proc/mounts)'
tell demo 'dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null; sum=$(md5sum </tmp/data)'
tell demo 'for d in a b; do dd if=/tmp/data of=/mnt$d/data bs=64k conv=fsync 2>/dev/null; done'
tell demo 'echo 3 >/proc/sys/vm/drop_caches'
answer demo "same a" '[ "$(md5sum </mnta/data)" = "$sum" ] && echo same a'
answer demo "same b" '[ "$(md5sum </mntb/data)" = "$sum" ] && echo same b'
answer demo "read only" 'head -n 1 /dev/vdc'
answer demo "refused" 'dd if=/tmp/data of=/dev/vdc bs=512 count=1 2>/dev/null || echo refused'
answer demo "sum kept" 'echo "$sum" >/mnta/sum && echo "$sum" >/mntb/sum && sync && echo sum kept'

# What the disks have done.
expect "plain           /root/plain.raw; 64M, read " vmctl info demo
[ "$(vmctl info demo | grep -c "in flight 0, errors 0\$")" = 3 ] || fail "errors"
expect "fixed           /root/fixed.raw; 1M, read " vmctl info demo

# The image is this guest's alone.
refuse "plain.raw: in use by another VM" vmctl disk resize plain.raw 128M
expect "second: defined" vmctl create disks.toml --name second
refuse "in use by another VM" vmctl start second --wait
is second "crashed /root/plain.raw: in use by another VM"

# What was written is there although the worker is killed, and although nothing was unmounted.
tell demo 'echo not synced >/mnta/late && echo not synced >/mntb/late && sync && echo w""ritten'
eventually 30 printed demo '^written.$'
expect "demo: stopped" vmctl kill demo
expect "grows.qcow2" vmctl disk info grows.qcow2
start demo
tell demo 'for d in a b; do mkdir /mnt$d; mount -t ext4 /dev/vd$d /mnt$d; done'
answer demo "mounted 2" 'echo mounted $(grep -c "^/dev/vd" /proc/mounts)'
answer demo "again a" '[ "$(md5sum </mnta/data)" = "$(cat /mnta/sum)" ] && grep -q synced /mnta/late && echo again a'
answer demo "again b" '[ "$(md5sum </mntb/data)" = "$(cat /mntb/sum)" ] && grep -q synced /mntb/late && echo again b'

# Room comes back.
before=$(du -k plain.raw | cut -f1)
tell demo 'umount /mnta; blkdiscard /dev/vda && echo dis""carded'
eventually 60 printed demo '^discarded.$'
after=$(du -k plain.raw | cut -f1)
[ "$after" -lt $((before / 2)) ] || fail "discarded, but of $before KiB there are still $after"
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
