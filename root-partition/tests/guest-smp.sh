# Two virtual CPUs in a guest: both are online, take their own timer's interrupts, and work.
# timeout: 600
. /lib/testing.sh
up demo --set vcpus=2
answer demo cpus=2 'echo cpus=$(nproc)'
for cpu in 0 1; do
    answer demo "on-$cpu=499500" "echo on-$cpu=\$(taskset -c $cpu awk 'BEGIN { for (i = 0; i < 1000; i++) s += i; print s }')"
done
answer demo timers=2 "echo timers=\$(awk '/LOC:/ { print (\$2 > 0) + (\$3 > 0) }' /proc/interrupts)"
vmctl kill demo >/dev/null
