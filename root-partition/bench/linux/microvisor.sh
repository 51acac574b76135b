# Measures whole guests of the microvisor.
. /lib/testing.sh
. ./common.sh
define() {
    case $2 in
    linux) printf '%s\n' 'kernel = "vmlinuz"' 'initrd = "bench-initrd"' "cmdline = \"console=ttyS0 quiet $linux_options $4\"" ;;
    kernel) printf '%s\n' 'kernel = "bench-kernel"' "cmdline = \"$4\"" ;;
    esac >"$1.toml"
    printf '%s\n' "name = \"$1\"" 'vcpus = 1' "memory = \"$3\"" >>"$1.toml"
    vmctl create "$1.toml" >/dev/null
}
start() {
    vmctl start "$1" >/dev/null
}
finish() {
    # A guest that halts for ever is ended; the others end by themselves.
    case $(cat "$1.toml") in
    *'"halt"'*) vmctl kill "$1" >/dev/null ;;
    *) vmctl wait "$1" --timeout 600s >/dev/null 2>&1 ;;
    esac
    vmctl logs "$1" >"/tmp/$1.log"
    vmctl delete "$1" >/dev/null
}
show() {
    cat "/tmp/$1.log"
}
processes() {
    for name in $(seq 100); do
        worker "g$name" 2>/dev/null
    done
}
# Linux guests at once, each of which ends after its boot.
several() {
    for number in $(seq "$1"); do
        define "g$number" linux 128M "" && start "g$number" || return
    done
    for number in $(seq "$1"); do
        finish "g$number" || return
    done
}
if [ -n "$bench_counted" ]; then
    count_start && count_idle
    exit
fi
echo "bench - begin"
measure_linux && measure && row linux-boots-8 8 $(timed several 8) && echo "bench - end"
