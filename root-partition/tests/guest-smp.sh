# Two virtual CPUs in a guest: both are online, take their own timer's interrupts, and work. A process
# and the kernel can write to the console at the same time.
# timeout: 600
. /lib/testing.sh
up demo --set vcpus=2
answer demo cpus=2 'echo cpus=$(nproc)'
for cpu in 0 1; do
    answer demo "on-$cpu=499500" "echo on-$cpu=\$(taskset -c $cpu awk 'BEGIN { for (i = 0; i < 1000; i++) s += i; print s }')"
done
answer demo timers=2 "echo timers=\$(awk '/LOC:/ { print (\$2 > 0) + (\$3 > 0) }' /proc/interrupts)"
tell demo 'n=0; while [ $n -lt 300 ]; do n=$((n+1)); echo kmsg$n >/dev/kmsg; usleep 1000; done &
i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo text$i; done; wait; echo bo""th'
# The kernel may write between the word and the end of its line.
eventually 120 printed demo '^both'
vmctl kill demo >/dev/null
