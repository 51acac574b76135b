# A guest that sleeps is shown as such, is woken by `resume`, and powers off when it is asked to; its devices are as they were.
# timeout: 600
. /lib/testing.sh
is_asleep() { vmctl list | grep -q "guest asleep"; }
is_awake() { vmctl list | grep -q "guest woke up"; }
vmctl net create lan0 --address 10.77.0.1/24 >/dev/null || fail "no network"
{ cat demo.toml; printf '[[disk]]\npath = "data.raw"\n[[nic]]\nnetwork = "lan0"\n'; } >guest.toml
yes "of the disk" | head -c 16777216 >data.raw
expect "demo: defined" vmctl create guest.toml --name demo --set vcpus=2
start demo
tell demo 'ip address add 10.77.0.2/24 dev eth0 && ip link set eth0 up'
answer demo "mem freeze" 'grep -o s2idle /sys/power/mem_sleep >/dev/null && echo mem freeze'
for kind in freeze mem; do
    tell demo "echo $kind >/sys/power/state; echo awa\"\"ke from $kind"
    eventually 60 is_asleep
    # It is held and let go as any other, and sleeps on.
    expect "demo: paused" vmctl pause demo
    expect "demo: running" vmctl resume demo
    sleep 2
    is demo running "guest asleep"
    printed demo "^awake from $kind" && fail "it woke by itself"
    expect "demo: running" vmctl resume demo
    eventually 60 printed demo "^awake from $kind.\$"
    eventually 10 is_awake
    # Without the page cache.
    answer demo "disk of $kind" "dd if=/dev/vda of=/tmp/start bs=4096 count=1 iflag=direct 2>/dev/null; grep -q '^of the disk' /tmp/start && echo disk of $kind"
    answer demo "net of $kind" "ping -c 1 -W 5 10.77.0.1 >/dev/null && echo net of $kind"
done
# A guest that is awake does not take `resume` for a press.
expect "demo: running" vmctl resume demo
sleep 3
is demo running "guest woke up"

tell demo 'echo freeze >/sys/power/state'
eventually 60 is_asleep
vmctl stop demo >/dev/null || fail "it can't be stopped"
expect "demo: stopped (guest powered off)" vmctl wait demo --for stopped --timeout 60s
