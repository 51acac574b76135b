# begin_symbols, add_symbols PID, end_symbols: with $bench_profile, write the names of the kernel's functions and the files
# that a process has mapped to the scratch disk. Only add_symbols runs beside the guest: scripts call it only for a profile.
begin_symbols() {
    [ -z "$bench_profile" ] || : >/tmp/maps
}
add_symbols() {
    cat "/proc/$1/maps" >>/tmp/maps
}
# The kernel loads modules while the guest starts: their functions are known at the end.
end_symbols() {
    [ -z "$bench_profile" ] || { cat /proc/kallsyms /tmp/maps >/dev/vda && sync; }
}
