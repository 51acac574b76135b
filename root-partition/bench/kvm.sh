# Runs the bench kernel twice as a guest of KVM and QEMU, and prints its lines: as the smallest machine that QEMU has, and as
# one with PCI and virtio devices. $bench_options are options of the kernel.
. ./symbols.sh
for module in /lib/kvm-amd/*; do
    insmod "$module" || exit 1
done
begin_symbols
# run LOG OPTIONS QEMU'S-OPTIONS...: runs the bench kernel with options of its own. The guest ends by a triple fault.
run() {
    log=$1 options=$2
    shift 2
    /usr/bin/qemu-system-x86_64 -accel kvm -cpu host -m 512M -kernel bench-kernel -append "$options $bench_options" \
        -nodefaults -no-user-config -no-reboot -display none -serial "file:$log" "$@" &
    qemu=$!
    # By then QEMU has its libraries, and the guest has not begun.
    [ -z "$bench_profile" ] || { usleep 100000 && add_symbols "$qemu"; }
    wait "$qemu" || exit 1
}
run /tmp/log "" -machine microvm,rtc=on
insmod /lib/brd/10.ko rd_nr=1 || exit 1
dd if=/dev/zero of=/dev/ram0 bs=1M 2>/dev/null
ip link add lan0 type bridge && ip address add 10.77.0.1/24 dev lan0 && ip link set lan0 up || exit 1
tunctl -t tap0 >/dev/null && ip link set tap0 master lan0 up || exit 1
run /tmp/devices.log devices -machine q35 -smp 2 -object iothread,id=io \
    -drive file=/dev/ram0,format=raw,if=none,id=disk,cache=none,aio=io_uring -device virtio-blk-pci,drive=disk,iothread=io,disable-legacy=on \
    -netdev tap,id=lan0,ifname=tap0,script=no,downscript=no,vhost=on -device virtio-net-pci,netdev=lan0,disable-legacy=on,romfile=
end_symbols
cat /tmp/log /tmp/devices.log
