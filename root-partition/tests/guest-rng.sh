# A guest's stock drivers find the PCI bus and a virtio device on it, take its interrupts by MSI-X, and
# bind it again after they were unbound. BARs in wrong places harm nothing.
# timeout: 600
. /lib/testing.sh
expect "demo: defined" vmctl create demo.toml --set vcpus=2
start demo
answer demo "ids 0x1b36 0x1af4" 'cd /sys/bus/pci/devices; echo ids $(cat */vendor)'
answer demo "ecam 1" 'echo ecam $(dmesg | grep -c "ECAM .* reserved as ACPI")'
answer demo "rng virtio_rng.0" 'echo rng $(cat /sys/class/misc/hw_random/rng_current)'
answer demo "msi 1" 'echo msi $(grep -c "PCI-MSIX.*virtio0-input" /proc/interrupts)'
answer demo "random 32" 'echo random $(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c)'

# The driver resets the device, and starts it anew; another CPU takes the interrupt.
tell demo 'cd /sys/bus/virtio/drivers/virtio_rng; echo virtio0 >unbind; echo virtio0 >bind'
answer demo "again 32" 'echo again $(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c)'
tell demo 'irq=$(grep virtio0-input /proc/interrupts | cut -d: -f1 | tr -d " "); echo 2 >/proc/irq/$irq/smp_affinity'
answer demo "moved 32" 'echo moved $(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c)'

# BARs are sized, moved over COM1 and over RAM, and disabled, while the driver is bound. The guest and
# its console go on.
tell demo 'dev=/sys/bus/pci/devices/0000:00:01.0; word() { printf "$1" | dd of=$dev/config bs=1 seek=$2 conv=notrunc 2>/dev/null; }'
tell demo 'word "\377\377\377\377" 16; word "\377\377\377\377" 20'
tell demo 'word "\000\000\020\000" 16; word "\371\003\000\000" 20; word "\000\000" 4; word "\007\004" 4'
answer demo "alive" 'echo al""ive | tr -d x'
is demo running
tell demo 'word "\000\000\001\300" 16; word "\001\301\000\000" 20'
answer demo "back 32" 'echo back $(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c)'
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
