# A guest that uses its local APICs by memory: each access is an instruction that the worker emulates.
# timeout: 900
. /lib/testing.sh
up demo --set vcpus=2 --set 'cmdline="console=ttyS0 quiet nox2apic"'
answer demo "off" 'dmesg | grep -q "x2apic disabled" && echo off'
answer demo 2 nproc
answer demo 42 'taskset -c 1 sh -c "echo \$((6 * 7))"'
tell demo poweroff
expect "guest powered off" vmctl wait demo --timeout 120s
