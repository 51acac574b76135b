# What is stored of running VMs is lost or spoilt: the next daemon finds them by the driver, and none is run twice.
# timeout: 600
. /lib/testing.sh
# is_running NAME: the daemon has heard of the worker that the VM runs.
is_running() {
    vmctl list | grep -q " $1 *running "
}
kernel_of one '\364\353\375'
kernel_of two '\364\353\375'
kernel_of three '\364\353\375'
for name in one two three; do
    expect defined vmctl create $name.toml
    expect running vmctl start $name --wait --timeout 60s
done
one=$(worker one)
before=$(partitions)
kill_daemon
state=/var/lib/microvisor
: >$state/one/state.toml
echo '[newer]' >>$state/one/config.toml
rm -r /run/microvisor/vms/one/worker.toml /run/microvisor/states
# Not even its socket is left: it can't be spoken to.
rm -r $state/two /run/microvisor/vms/two
start_daemon
eventually 30 is_running one
[ "$(worker one)" = "$one" ] || fail "another worker"
is two "only kill works"
eventually 30 is_running three
[ "$(partitions)" = "$before" ] || fail "$(partitions), before: $before"
expect "config.toml:10: unknown key" vmctl info one
for name in one two three; do
    refuse "$name" vmctl start $name
    refuse "defined already" vmctl create $name.toml
    expect killed vmctl kill $name
done
[ "$(partitions | cut -d' ' -f1)" = 0 ] || fail "$(partitions)"
refuse "config.toml:10: unknown key" vmctl start one
sed -i '/newer/d' $state/one/config.toml
expect running vmctl start one --wait --timeout 60s
expect killed vmctl kill one
for name in one two three; do
    expect deleted vmctl delete $name
done
[ "$(ls $state)" = "" ] || fail "$(ls $state)"
