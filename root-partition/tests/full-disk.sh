# The disk that holds the daemon's files and log is full: VMs start, run, reboot and end all the same, and say so.
# timeout: 600
. /lib/testing.sh
# says_full NAME WHAT: the reason of the VM's state says that, and why.
says_full() {
    vmctl info "$1" | grep -q "$2: No space left on device"
}
# saved NAME STATE: the daemon has saved that state.
saved() {
    grep -q "state = \"$2\"" "/small/$1/state.toml"
}
rebooted() {
    ! vmctl info "$1" | grep -q '^reboots *0$'
}
kill_daemon
mkdir /small
mount -t tmpfs -o size=256k none /small
vmctl daemon --state-dir /small 2>/small/daemon.log &
eventually 30 vmctl list
# One writes "x" to its serial port and halts; the other resets its machine.
kernel_of halts '\146\272\370\003\260\170\356\364\353\375'
kernel_of reboots '\260\376\346\144\364\353\375'
expect defined vmctl create halts.toml
expect defined vmctl create reboots.toml
cat /dev/zero >/small/zeros 2>/dev/null
refuse "No space left" vmctl create halts.toml --name third
[ "$(vmctl list | wc -l)" = 4 ] || fail "something is left: $(vmctl list)"
expect "halts: running" vmctl start halts --wait --timeout 60s
eventually 10 vmctl wait halts --for running --timeout 1s
eventually 10 says_full halts "the console log can't be written"
says_full halts "this state can't be saved" || fail "$(vmctl info halts)"
expect "reboots" vmctl start reboots --wait --timeout 60s
eventually 30 rebooted reboots
kill -KILL "$(worker halts)"
refuse "worker died: signal 9" vmctl wait halts --timeout 60s
expect killed vmctl kill reboots
rm /small/zeros
eventually 30 saved halts crashed
eventually 30 saved reboots stopped
expect "halts: running" vmctl start halts --wait --timeout 60s
eventually 10 printed halts 'x'
expect killed vmctl kill halts
