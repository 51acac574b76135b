# A guest reboots: the same VM, running again; or stopped, when its configuration says so, or its user.
# timeout: 600
. /lib/testing.sh
# braked: the guest waits to boot again.
braked() {
    vmctl info reboots | grep -q 'rebooted [0-9]* times in a row within 10 s of its start; it boots again after [48] s'
}
up demo
tell demo reboot
eventually 240 boots demo 2
is demo running
expect "reboots         1" vmctl info demo
expect "demo: running" vmctl reboot demo --timeout 60s
expect "reboots         2" vmctl info demo
# A guest that boots does not see the power button yet.
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 120s
up other --set on_reboot=stop
tell other reboot
expect "other: stopped" vmctl wait other --timeout 60s
# One that does nothing but reboot waits for its next boots, and obeys at once.
kernel_of reboots '\260\376\346\144\364\353\375'
expect defined vmctl create reboots.toml
expect running vmctl start reboots --wait --timeout 60s
eventually 60 braked
expect "reboots: stopped (stopped while it waited to boot again)" vmctl stop reboots --timeout 60s
