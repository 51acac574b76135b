# Runs the bench kernel as a guest of KVM and QEMU, and prints its lines. $bench_rows are the rows that it measures.
. ./symbols.sh
for module in /lib/kvm/*; do
    insmod "$module" || exit 1
done
begin_symbols
/usr/bin/qemu-system-x86_64 -machine microvm,rtc=on -accel kvm -cpu host -m 512M -kernel bench-kernel \
    -append "${bench_rows:+rows=$bench_rows}" -nodefaults -no-user-config -no-reboot -display none -serial file:/tmp/log &
qemu=$!
# By then QEMU has its libraries, and the guest has not begun.
[ -z "$bench_profile" ] || { usleep 100000 && add_symbols "$qemu"; }
# The guest ends by a triple fault.
wait "$qemu" || exit 1
end_symbols
cat /tmp/log
