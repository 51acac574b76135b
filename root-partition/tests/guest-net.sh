# Two guests and root in one network: names of interfaces, MTU, large transfers with and without offloads, several queues,
# VLANs; and each wrong NIC with its line.
# timeout: 600
. /lib/testing.sh
nic() { printf '[[nic]]\n'; printf '%s\n' "$@"; }
expect "lan0: created" vmctl net create lan0 --address 10.77.0.1/24 --mtu 9000
expect "lan1: created" vmctl net create lan1 --vlan-filtering
{ cat demo.toml; nic 'network = "lan0"' 'queues = 2' 'address = "10.77.0.10"' 'rate = "1G"' 'packets = 100000'; nic 'network = "lan1"' 'vlan = 10'; } >a.toml
# A tap that somebody has made, and plugged into the bridge.
tunctl -t tap7 >/dev/null && ip link set tap7 master lan0 mtu 9000 up || fail "tap7"
{ cat demo.toml; nic 'tap = "tap7"'; nic 'network = "lan1"' 'vlan = "10t"' 'trunks = [20]'; } >b.toml
for name in a b; do
    expect "$name: defined" vmctl create $name.toml --name $name --set vcpus=2
done
expect "a: running" vmctl start a --wait --timeout 60s
# Without vhost-net the worker moves the frames.
mv /dev/vhost-net .
expect "b: running" vmctl start b --wait --timeout 60s
mv vhost-net /dev/
for name in a b; do
    hold $name
    eventually 240 boots $name 1
done
vmctl net list | grep -qE '^  mv0 +port +- +a +10.77.0.10 +52:54:' || fail "no port of a: $(vmctl net list)"
vmctl info a | grep -qE '^lan0 +52:54:.* at lan0 by mv0; vhost-net, link up, MTU 9000, queues 2 of 2, lost 0, refused 0$' ||
    fail "a: $(vmctl info a)"
vmctl info b | grep -qE '^tap7 +52:54:.* at tap7 by tap7; worker, link up, MTU 9000, queues 1 of 1, lost 0, refused 0$' ||
    fail "b: $(vmctl info b)"
answer a "mtu 9000" 'echo mtu $(cat /sys/class/net/eth0/mtu)'
answer a "queues 2" 'echo queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)'
tell a 'ip address add 10.77.0.10/24 dev eth0; ip link set eth0 up; ip address add 10.78.0.10/24 dev eth1; ip link set eth1 up'
tell b 'ip address add 10.77.0.11/24 dev eth0; ip link set eth0 up; ip link set eth1 up'
eventually 30 ping -c 1 -W 1 10.77.0.10
eventually 30 ping -c 1 -W 1 10.77.0.11
expect " 3 packets received" ping -c 3 -W 5 -s 8900 10.77.0.10
answer a "0 lost" 'ping -c 3 -W 5 -s 8900 10.77.0.11 | grep -o " 0% packet loss" >/dev/null && echo 0 lost'

# Large transfers: from root to a guest, from a guest to root, and from guest to guest.
dd if=/dev/urandom of=data bs=1M count=8 2>/dev/null
sum=$(md5sum <data | cut -d' ' -f1)
tell a 'nc -l -p 5000 >/tmp/data; echo sum $(md5sum </tmp/data)'
eventually 30 nc 10.77.0.10 5000 <data
eventually 60 printed a "^sum $sum"
# `nc` ends when the other side has no more to say, so that nobody may be silent too early.
mkfifo open
sleep 1000 <>open &
nc -l -p 5001 <open >back &
tell a 'nc 10.77.0.1 5001 </tmp/data'
wait $!
[ "$(md5sum <back | cut -d' ' -f1)" = "$sum" ] || fail "what a sent came otherwise"
tell b 'nc -l -p 5002 >/tmp/data; echo sum $(md5sum </tmp/data)'
answer a sent 'until nc 10.77.0.11 5002 </tmp/data; do sleep 1; done; echo sent'
eventually 60 printed b "^sum $sum"
vmctl info a | grep -q '^lan0 .*lost 0, refused 0$' || fail "a: $(vmctl info a)"

# Another address than its own leads nowhere.
answer a "other address 100% lost" 'ip address add 10.77.0.12/24 dev eth0; ping -c 2 -W 2 -I 10.77.0.12 10.77.0.1 | grep -o " 100% packet loss" >/dev/null && echo other address 100% lost'
vmctl net list | grep -qE '^  mv0 .* 1G,100000/s +[0-9]+M +[0-9]+[KM] +[1-9][0-9]*$' || fail "no limits and drops: $(vmctl net list)"

# Somebody removes all rules, and the daemon makes those of networks and ports again.
rules() { nft -s list ruleset | sort; }
before=$(rules)
echo "$before" | grep -q mv0-from || fail "no rules: $before"
nft flush ruleset
back() { [ "$(rules)" = "$before" ]; }
eventually 30 back
answer a "still 100% lost" 'ping -c 2 -W 2 -I 10.77.0.12 10.77.0.1 | grep -o " 100% packet loss" >/dev/null && echo still 100% lost'

# A guest in a VLAN, and one that tags its frames.
tell b 'ip link add link eth1 name eth1.10 type vlan id 10 && ip address add 10.78.0.11/24 dev eth1.10 && ip link set eth1.10 up'
answer b "vlan 0 lost" 'ping -c 3 -W 5 10.78.0.10 | grep -o " 0% packet loss" >/dev/null && echo vlan 0 lost'

# A card that comes and goes while the guest runs, and whose cable is pulled.
expect "a: NIC extra attached" vmctl attach a nic network=lan0 name=extra
answer a "extra there" 'until [ -e /sys/class/net/eth2 ]; do sleep 1; done; echo extra there'
tell a 'ip address add 10.79.0.10/24 dev eth2; ip link set eth2 up'
ip address add 10.79.0.1/24 dev lan0
eventually 30 ping -c 1 -W 1 10.79.0.10
expect "a: nic.extra.link=down set" vmctl set a nic.extra.link=down
answer a "carrier 0" 'until grep 0 /sys/class/net/eth2/carrier >/dev/null; do sleep 1; done; echo carrier 0'
ping -c 1 -W 2 10.79.0.10 >/dev/null && fail "no cable leads to the guest, but it answers"
expect "a: nic.2.link=up set" vmctl set a nic.2.link=up
answer a "carrier 1" 'until grep 1 /sys/class/net/eth2/carrier >/dev/null; do sleep 1; done; echo carrier 1'
eventually 30 ping -c 1 -W 1 10.79.0.10
refuse "a: nic.9.link=up: a has no such NIC" vmctl set a nic.9.link=up
refuse "expected nic.NIC.link=up or nic.NIC.link=down" vmctl set a memory=1G
# The daemon may end in between.
kill_daemon
start_daemon
expect "a: extra detached" vmctl detach a extra
answer a "extra gone" '[ -e /sys/class/net/eth2 ] || echo extra gone'
vmctl net list | grep -c ' a ' | grep -qx 2 || fail "a has other ports: $(vmctl net list)"
refuse "a: lan9: no such network" vmctl attach a nic network=lan9
refuse "one of the keys" vmctl attach a nic vlan=10
refuse "a: lan0: VLAN 10: this bridge does not filter VLANs" vmctl attach a nic network=lan0 vlan=10
refuse "two devices have the name" vmctl attach a nic network=lan0 name=lan0
refuse 'no disk or NIC has the name "extra"' vmctl detach a extra

wrong() {
    what=$1
    shift
    { cat demo.toml; nic "$@"; } >wrong.toml
    expect "wrong: defined" vmctl create wrong.toml --name wrong
    refuse "$what" vmctl start wrong --wait --timeout 60s
    expect "wrong: deleted" vmctl delete wrong
}
wrong "lan9: no such network" 'network = "lan9"'
wrong "br9: VM 0 has no such interface" 'bridge = "br9"'
wrong "lo: not a bridge" 'bridge = "lo"'
wrong "lo: not a tap device" 'tap = "lo"'
wrong "tap7: another program uses this tap" 'tap = "tap7"'
wrong "mv0: another program uses this tap" 'tap = "mv0"'
wrong "lan0: VLAN 10: this bridge does not filter VLANs" 'network = "lan0"' 'vlan = 10'
wrong "lan0: its MTU is 9000: a NIC can't have 9001" 'network = "lan0"' 'mtu = 9001'
wrong "lan0: VM a has the address 10.77.0.10" 'network = "lan0"' 'address = "10.77.0.10"'
wrong "lan0: address 10.78.0.9: that is outside of the network (10.77.0.1/24)" 'network = "lan0"' 'address = "10.78.0.9"'
wrong "lan0: address 10.77.0.255: that is the broadcast address" 'network = "lan0"' 'address = "10.77.0.255"'
mv /sbin/nft .
wrong "the program nft is missing: install the package nftables" 'network = "lan0"'
mv nft /sbin/
mac=$(vmctl info a --format json | grep -o '52:54:[0-9a-f:]*' | head -n 1)
wrong "lan0: VM a has the MAC address $mac" 'network = "lan0"' "mac = \"$mac\""
mv /dev/net/tun .
wrong "/dev/net/tun: No such file or directory" 'network = "lan0"'
mv tun /dev/net/tun

# A guest that ends unplugs its cables; nobody keeps a network then.
refuse "lan0: in use by tap7, mv0" vmctl net delete lan0
for name in a b; do
    expect killed vmctl kill $name
done
wrong "tap7: this tap has one queue" 'tap = "tap7"' 'queues = 2'
tunctl -d tap7
eventually 10 vmctl net delete lan0
eventually 10 vmctl net delete lan1
dmesg | grep -E 'WARNING: CPU|BUG:|Oops|protection fault' && fail "the kernel complains"
true
