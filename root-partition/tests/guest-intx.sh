# A guest whose kernel knows no message-signalled interrupts uses the pins of its devices, which some of them share.
# timeout: 600
. /lib/testing.sh
cp demo.toml pins.toml
for n in $(seq 1 9); do
    vmctl disk create disk$n.raw 8M >/dev/null || fail "no image"
    printf '[[disk]]\npath = "disk%s.raw"\n' $n >>pins.toml
done
expect "demo: defined" vmctl create pins.toml --set vcpus=2 --set cmdline='console=ttyS0 quiet pci=nomsi'
start demo
# Slots 1 and 9 share a pin.
answer demo "shared 1" 'echo shared $(grep -c "17-fasteoi .*virtio.*, virtio" /proc/interrupts)'
tell demo 'dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null; sum=$(md5sum </tmp/data)'
tell demo 'for d in a i; do dd if=/tmp/data of=/dev/vd$d bs=64k oflag=direct 2>/dev/null & done; wait; echo wri""tten'
eventually 60 printed demo '^written.$'
answer demo "same" '[ "$(dd if=/dev/vda bs=64k count=64 iflag=direct 2>/dev/null | md5sum)" = "$sum" ] && [ "$(dd if=/dev/vdi bs=64k count=64 iflag=direct 2>/dev/null | md5sum)" = "$sum" ] && echo same'
answer demo "random 32" 'echo random $(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c)'
answer demo "heard" 'dmesg | grep -q "nobody cared" || echo heard'
# A disk that comes has a pin as well.
vmctl disk create more.raw 8M >/dev/null || fail "no image"
expect "demo: disk more attached" vmctl attach demo disk more.raw
answer demo "read" 'until [ -e /dev/vdj ]; do usleep 100000; done; dd if=/dev/vdj of=/dev/null iflag=direct bs=4k count=4 2>/dev/null && echo read'
expect "demo: more detached" vmctl detach demo more
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
