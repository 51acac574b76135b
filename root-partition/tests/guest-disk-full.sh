# Root has no space for a disk image. The guest gets an error and goes on, or the VM stops until the
# user has made space and resumes it, and nothing is lost.
# timeout: 600
. /lib/testing.sh
mkdir /small
mount -t tmpfs -o size=8M none /small || fail "no small file system"
vmctl disk create /small/errs.raw 64M >/dev/null
vmctl disk create /small/waits.raw 64M >/dev/null
{
    cat demo.toml
    printf '[[disk]]\npath = "/small/errs.raw"\non_enospc = "report"\n'
    printf '[[disk]]\npath = "/small/waits.raw"\n'
} >full.toml
expect "demo: defined" vmctl create full.toml
start demo
tell demo 'dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null || echo no""room'
eventually 60 printed demo '^noroom.$'
is demo running
# What was written makes room again.
tell demo 'blkdiscard /dev/vda && echo dis""carded'
eventually 60 printed demo '^discarded.$'

tell demo 'yes 0123456 | head -c 1048576 >/tmp/mib; for i in $(seq 16); do cat /tmp/mib; done >/tmp/data'
tell demo 'dd if=/tmp/data of=/dev/vdb bs=1M conv=fsync 2>/dev/null && echo all""there'
expect "demo: io-stalled" vmctl wait demo --for io-stalled --timeout 60s
is demo "io-stalled waits: no space left"
refuse "resume demo" vmctl stop demo
# Still no room.
expect "demo: running" vmctl resume demo
expect "demo: io-stalled" vmctl wait demo --for io-stalled --timeout 60s
mount -o remount,size=64M /small || fail "it does not grow"
expect "demo: running" vmctl resume demo
eventually 60 printed demo '^allthere.$'
yes 0123456 | head -c 16777216 | cmp -n 16777216 - /small/waits.raw || fail "not what the guest wrote"
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
