# fio in a Debian guest reads back what it wrote to a raw image, to a qcow2 image and to a qcow2 chain, and the images are
# in order afterwards and hold the same.
# long: yes
# debian: yes
# timeout: 2400
. /lib/testing.sh
. /lib/debian.sh
vmctl disk create data.raw 32M >/dev/null
vmctl disk create data.qcow2 32M >/dev/null
vmctl disk create base.qcow2 32M >/dev/null
vmctl disk snapshot base.qcow2 middle.qcow2 >/dev/null
vmctl disk snapshot middle.qcow2 chain.qcow2 >/dev/null
printf '[[disk]]\npath = "%s"\n' data.raw data.qcow2 chain.qcow2 >>debian.toml
clone web
debian web
# check WORD DISK OPTION...: fio writes and verifies; prints WORD and the disk, or what fio says.
tell web 'check() { word=$1-$2; disk=$2; shift 2; fio --name=x --eta=never --filename=/dev/$disk --direct=1 --ioengine=libaio --iodepth=32 --size=16M --verify=crc32c --verify_fatal=1 --output=/tmp/fio "$@" || { cat /tmp/fio; echo bad: $word; }; echo $word; }'
for disk in vdb vdc vdd; do
    tell web "check random $disk --rw=randwrite --bs=4k --fsync=32"
    tell web "check large $disk --rw=write --bs=1m --fsync=4"
    tell web "check discard $disk --rw=randtrimwrite --bsrange=4k-1m"
    for kind in random large discard; do
        eventually 300 printed web "^$kind-$disk.\$"
        printed web "^bad: " && fail "$(vmctl logs web | grep -B 30 "^bad: ")"
    done
done
tell web 'for to in vdc vdd; do dd if=/dev/vdb of=/dev/$to bs=1M oflag=direct conv=fsync 2>/dev/null && echo copied-$to; done'
eventually 60 printed web '^copied-vdc.$'
eventually 60 printed web '^copied-vdd.$'
[ "$(vmctl info web | grep -c "errors 0\$")" = 4 ] || fail "errors"
expect "web: stopped (guest powered off)" vmctl stop web --timeout 120s
for image in data.qcow2 chain.qcow2 web.qcow2; do
    expect "No errors were found" tool qemu-img check "/mnt/$image"
done
for image in data.qcow2 chain.qcow2; do
    expect "Images are identical" tool qemu-img compare -f raw -F qcow2 /mnt/data.raw "/mnt/$image"
done
