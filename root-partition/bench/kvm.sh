# Runs the bench kernel as a guest of KVM and QEMU, and prints its lines.
for module in /lib/kvm/*; do
    insmod "$module" || exit 1
done
# The guest ends by a triple fault.
/usr/bin/qemu-system-x86_64 -machine microvm,rtc=on -accel kvm -cpu host -m 512M -kernel bench-kernel \
    -nodefaults -no-user-config -no-reboot -display none -serial file:/tmp/log || exit 1
cat /tmp/log
