# Runs the bench kernel as an HVM guest of Xen, in the place of its firmware, and prints its lines. The kernel has its options in
# itself. Xen wants a BIOS, which nobody reads.
. ./toolstack.sh
echo >bios
configure bench hvm 512 'firmware_override = "/root/hvm-kernel"' 'bios = "seabios"' 'bios_path_override = "/root/bios"' \
    'serial = "file:/tmp/log"' 'vga = "none"' 'vnc = 0' \
    'device_model_version = "qemu-xen"' 'device_model_override = "/usr/libexec/xen-qemu-system-i386"'
# In the foreground, until the guest has ended by a triple fault.
xl create -F bench.cfg >&2 || { cat /var/log/xen/*; exit 1; }
cat /tmp/log
