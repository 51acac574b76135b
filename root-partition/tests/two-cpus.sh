# Both CPUs work, and came up through the mailbox.
# cpus: 2
. /lib/testing.sh
[ "$(nproc)" = 2 ] || fail "nproc: $(nproc)"
dmesg | grep -q 'replaced with acpi_wakeup_cpu' || fail "no wakeup mailbox"
for cpu in 0 1; do
    [ "$(taskset -c $cpu sh -c 'echo $((6 * 7))')" = 42 ] || fail "CPU $cpu"
done
