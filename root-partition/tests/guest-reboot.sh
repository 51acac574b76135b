# A guest reboots: the same VM, running again; or stopped, when its configuration says so.
# timeout: 600
. /lib/testing.sh
up demo
tell demo reboot
eventually 240 boots demo 2
is demo running
expect "reboots         1" vmctl info demo
vmctl kill demo >/dev/null
up other --set on_reboot=stop
tell other reboot
expect "other: stopped" vmctl wait other --timeout 60s
