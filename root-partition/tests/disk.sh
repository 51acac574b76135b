# VM 0's stock driver writes to the machine's disk and reads it back, and its interrupts arrive.
. /lib/testing.sh
dd if=/dev/urandom of=/tmp/data bs=1M count=16 2>/dev/null
dd if=/tmp/data of=/dev/vda bs=1M conv=fsync 2>/dev/null || fail "writing"
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda bs=1M count=16 2>/dev/null | cmp - /tmp/data || fail "other bytes come back"
# Read from the disk, not from memory: at least one sector for each 512 bytes.
[ "$(awk '$3 == "vda" { print $6 }' /proc/diskstats)" -ge 32768 ] || fail "$(cat /proc/diskstats)"
grep -q 'virtio.*-req' /proc/interrupts || fail "no interrupt of the disk's"
