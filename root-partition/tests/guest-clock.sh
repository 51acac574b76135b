# A guest finds its clock, x2APIC, and the interrupts of its devices.
# timeout: 600
. /lib/testing.sh
up demo
answer demo kvm-clock=yes "grep -q kvm-clock /sys/devices/system/clocksource/*/available_clocksource && echo kvm-clock=yes"
answer demo x2apic=yes 'dmesg | grep -q "APIC routing to.*x2apic" && echo x2apic=yes'
answer demo serial=yes "awk '/ttyS0/ && \$2 > 0 { print \"serial=yes\" }' /proc/interrupts"
answer demo rtc=yes 'hwclock >/dev/null && echo rtc=yes'
# Five seconds of the guest's are five of root's, give or take what a busy host costs.
tell demo 'sleep 5; echo slept=$?'
begin=$(cut -d. -f1 /proc/uptime)
eventually 60 printed demo '^slept=0'
took=$(($(cut -d. -f1 /proc/uptime) - begin))
[ "$took" -ge 4 ] || fail "sleep 5 took $took s"
