# A guest has as many disks as its bus has slots, of any size, and each answers. A disk that shrinks under a guest gives
# errors, and only where it shrank.
# timeout: 600
# long: yes
. /lib/testing.sh
cp demo.toml many.toml
for n in $(seq 1 30); do
    # Few of the sizes are multiples of a page.
    truncate -s $((4096 * n + 512 * (n % 8))) disk$n.raw
    printf '[[disk]]\npath = "disk%s.raw"\nserial = "disk-%s"\n' $n $n >>many.toml
done
cp many.toml more.toml
printf '[[disk]]\npath = "disk31.raw"\n' >>more.toml
truncate -s 1000 disk31.raw
refuse "31: a VM has at most 30 disks" vmctl create more.toml
{
    cat demo.toml
    printf '[[disk]]\npath = "disk31.raw"\n'
} >odd.toml
refuse "disk31.raw: 1000 bytes are no whole number of 512-byte sectors" vmctl create odd.toml --name odd
truncate -s 1024 disk31.raw
expect "odd: defined" vmctl create odd.toml --name odd
truncate -s 1000 disk31.raw
refuse "disk31.raw: 1000 bytes are no whole number of 512-byte sectors" vmctl start odd --wait --timeout 60s
expect "demo: defined" vmctl create many.toml --set vcpus=4
start demo
answer demo "disks 30" 'echo disks $(ls -d /sys/block/vd* | wc -l)'
for pair in 1:vda 7:vdg 29:vdac 30:vdad; do
    n=${pair%:*} disk=${pair#*:}
    answer demo "$n: $((8 * n + n % 8)) disk-$n" "echo $n: \$(cat /sys/block/$disk/size /sys/block/$disk/serial)"
done
tell demo 'for d in /dev/vd*; do dd if=/dev/urandom of=/tmp/block bs=512 count=8 2>/dev/null; for cpu in 0 3; do taskset $((1 << cpu)) dd if=/tmp/block of=$d bs=512 count=8 conv=fsync 2>/dev/null || echo bad write $d; done; dd if=$d iflag=direct bs=512 count=8 2>/dev/null | cmp -s - /tmp/block && echo same >>/tmp/same; done'
answer demo "same 30" 'echo same $(wc -l </tmp/same)'
[ "$(vmctl info demo | grep -c "errors 0\$")" = 30 ] || fail "errors"

# It has 123 KiB.
truncate -s 64K disk30.raw
answer demo "kept" 'dd if=/dev/vdad iflag=direct bs=4k count=16 of=/dev/null 2>/dev/null && echo kept'
answer demo "lost" 'dd if=/dev/vdad iflag=direct bs=4k skip=16 count=1 of=/dev/null 2>/dev/null || echo lost'
expect "disk30          /root/disk30.raw; 123K" vmctl info demo
answer demo "others" 'dd if=/dev/vda iflag=direct bs=4k count=1 of=/dev/null 2>/dev/null && echo others'
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
