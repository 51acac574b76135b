# The driver's ioctls, with guests of a few instructions; and the module stays while a partition lives.
# tests: driver-tests
# timeout: 600
. /lib/testing.sh
./driver-tests --test-threads=1 --skip vm0::networks || fail "tests"
dmesg | grep -E 'WARNING: CPU|BUG:|Oops|protection fault' && fail "the kernel complains"
kill "$(pidof vmctl)"
eventually 10 sh -c '! pidof vmctl'
DRIVER_TEST_LEAVES=1 ./driver-tests --exact vm0::attach::helper_leaves_a_partition || fail "no partition"
rmmod microvisor 2>/dev/null && fail "the module goes while a partition lives"
./driver-tests --exact vm0::attach::helper_destroys_all || fail "destroy"
rmmod microvisor || fail "the module stays"
insmod /lib/modules/microvisor.ko || fail "it does not load again"
[ -c /dev/microvisor ] || fail "no device"
