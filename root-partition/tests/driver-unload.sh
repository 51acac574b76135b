# The driver stays while a VM lives, and goes and comes back when none does.
# timeout: 600
. /lib/testing.sh
up demo
rmmod microvisor 2>/dev/null && fail "unloaded under a living VM"
answer demo 42 'echo $((6 * 7))'
vmctl kill demo >/dev/null
vmctl delete demo >/dev/null
eventually 30 rmmod microvisor
refuse "driver" vmctl doctor
refuse "/dev/microvisor" vmctl verify
insmod /lib/modules/microvisor.ko || fail "does not load again"
up demo
