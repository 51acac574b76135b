# Measures whole guests of KVM and QEMU.
. /lib/testing.sh
. ./common.sh
for module in /lib/kvm-amd/*; do
    insmod "$module" || exit 1
done
define() {
    case $2 in
    linux) echo "-kernel vmlinuz -initrd bench-initrd" ;;
    kernel) echo "-kernel bench-kernel" ;;
    esac >"/tmp/$1.options"
    echo "-m $3" >>"/tmp/$1.options"
    echo "console=ttyS0 quiet $linux_options $4" >"/tmp/$1.append"
}
start() {
    # The options are words.
    /usr/bin/qemu-system-x86_64 -machine microvm,rtc=on -accel kvm -cpu host $(cat "/tmp/$1.options") -append "$(cat "/tmp/$1.append")" \
        -nodefaults -no-user-config -no-reboot -display none -serial "file:/tmp/$1.log" &
    echo $! >"/tmp/$1.pid"
}
finish() {
    qemu=$(cat "/tmp/$1.pid")
    # A guest that halts for ever is ended; the others end by themselves.
    case $(cat "/tmp/$1.append") in
    *" halt")
        kill "$qemu"
        wait "$qemu"
        ;;
    *) wait "$qemu" || return ;;
    esac
    rm "/tmp/$1.pid"
}
show() {
    cat "/tmp/$1.log"
}
processes() {
    cat /tmp/g*.pid
}
if [ -n "$bench_counted" ]; then
    count_start && count_idle
    exit
fi
echo "bench - begin"
measure_linux && measure && echo "bench - end"
