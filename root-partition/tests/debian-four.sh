# Four Debian guests at once, on thin clones of one image, in a machine of 4 GiB.
# long: yes
# debian: yes
# mem: 4G
# timeout: 1500
. /lib/testing.sh
. /lib/debian.sh
# One boots after the other: the emulated machine is so slow with four boots at once that systemd gives up on the serial port.
for name in one two three four; do
    clone $name --set memory=512M
    debian $name
    answer $name state=running 'echo state=$(systemctl is-system-running --wait)'
done
vmctl list
for name in one two three four; do
    is $name running
    tell $name 'dd if=/dev/urandom of=/root/data bs=1M count=16 conv=fsync 2>/dev/null; sum=$(md5sum </root/data)'
done
for name in one two three four; do
    tell $name 'echo 3 >/proc/sys/vm/drop_caches; [ "$(md5sum </root/data)" = "$sum" ] && echo sa""me; echo machine=$(cat /etc/machine-id)'
done
ids=$(for name in one two three four; do
    eventually 120 printed $name '^machine='
    printed $name '^same' || fail "$name reads other bytes than it wrote"
    vmctl logs $name | grep '^machine='
done)
[ "$(echo "$ids" | sort -u | wc -l)" -eq 4 ] || fail "the machine IDs are not four: $ids"
for name in one two three four; do
    expect "$name: stopped (guest powered off)" vmctl stop $name --timeout 240s
    expect "No errors were found" tool qemu-img check /mnt/$name.qcow2
done
