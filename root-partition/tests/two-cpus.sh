# Both CPUs work, and came up through the mailbox.
[ "$(nproc)" = 2 ] || { echo "nproc: $(nproc)"; exit 1; }
dmesg | grep -q 'replaced with acpi_wakeup_cpu' || { echo "no wakeup mailbox"; exit 1; }
for cpu in 0 1; do
    [ "$(taskset -c $cpu sh -c 'echo $((6 * 7))')" = 42 ] || { echo "CPU $cpu"; exit 1; }
done
