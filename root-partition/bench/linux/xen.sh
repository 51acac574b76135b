# Measures whole guests of Xen: PVH guests, which have neither firmware nor QEMU. Linux as a PVH or HVM guest does not boot on this
# emulated machine (docs/benchmarks.md).
. /lib/testing.sh
. ./common.sh
. ./toolstack.sh
define() {
    configure "$1" pvh "${3%M}" 'kernel = "bench-kernel"' "cmdline = \"$4\""
}
is_endless() {
    grep -q '"halt"' "$1.cfg"
}
start() {
    if is_endless "$1"; then
        # Returns when the guest runs, and leaves a process that waits for its end.
        xl create "$1.cfg" >&2
        return
    fi
    # In the foreground, until the guest has ended.
    xl create -F "$1.cfg" >&2 &
    echo $! >"/tmp/$1.pid"
}
finish() {
    if is_endless "$1"; then
        xl destroy "$1"
    else
        wait "$(cat "/tmp/$1.pid")"
    fi
}
# Xen has the guests' memory, and dom0 their processes'.
free_memory() {
    echo $(($(kernels_free_memory) + $(xl info free_memory) * 1048576))
}
processes() {
    pidof xl
}
if [ -n "$bench_counted" ]; then
    count_start
    exit
fi
echo "bench - begin"
measure && echo "bench - end"
