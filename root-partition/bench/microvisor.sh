# Runs the bench kernel twice as a guest, and prints its lines: without and with virtio devices. $bench_options are options
# of the kernel.
. /lib/testing.sh
. ./symbols.sh
# configure NAME OPTIONS VCPUS: writes the configuration of a VM, but for its devices.
configure() {
    cat <<TOML
name = "$1"
vcpus = $3
memory = "512M"
kernel = "bench-kernel"
cmdline = "$2 $bench_options"
TOML
}
# run NAME: runs a VM. The guest ends by a triple fault.
run() {
    vmctl create "$1.toml" >/dev/null || fail "the guest $1 is not defined"
    vmctl start "$1" >/dev/null || fail "the guest $1 does not start"
    [ -z "$bench_profile" ] || add_symbols "$(worker "$1")"
    vmctl wait "$1" --timeout 600s >/dev/null 2>&1
}
begin_symbols
configure bench "" 1 >bench.toml
run bench
insmod /lib/brd/10.ko rd_nr=1 || fail "there is no disk in memory"
dd if=/dev/zero of=/dev/ram0 bs=1M 2>/dev/null
vmctl net create lan0 --address 10.77.0.1/24 >/dev/null || fail "there is no network"
{
    configure devices devices 2
    printf '%s\n' '[[disk]]' 'path = "/dev/ram0"' '[[nic]]' 'network = "lan0"'
} >devices.toml
run devices
end_symbols
vmctl logs bench
vmctl logs devices
