# A guest that uses its local APICs by memory: each access is an instruction that the worker emulates.
# timeout: 900
. /lib/testing.sh
up demo --set vcpus=2 --set 'cmdline="console=ttyS0 nox2apic"'
printed demo 'x2apic disabled' || fail "the guest uses x2APIC"
answer demo 2 nproc
answer demo 42 'taskset -c 1 sh -c "echo \$((6 * 7))"'
tell demo poweroff
expect "guest powered off" vmctl wait demo --timeout 120s
