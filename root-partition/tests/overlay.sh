# Two machines with a cable between them, and guests of both in one network: each machine leases addresses of its own part, and
# guests reach each other, also in VLANs and with large transfers. Nobody but the peer sends into the network. The same with
# encryption.
# machines: 2
# timeout: 500
. /lib/testing.sh
other=$((3 - machine))
ip address add 192.168.50.$machine/24 dev eth1
ip link set eth1 up
# exchange WORD: waits until both machines have come so far, and prints the other one's word.
exchange() {
    if [ "$machine" = 1 ]; then
        echo "$1" | nc -l -p 9
        return
    fi
    until heard=$(echo "$1" | nc 192.168.50.1 9 2>/dev/null) && [ -n "$heard" ]; do
        usleep 200000
    done
    echo "$heard"
}
[ "$(exchange here)" = here ] || fail "the other machine is not there"

make() { vmctl net create "$@" --address 10.77.0.$machine/24 --vxlan 77 --peer 192.168.50.$other; }
refuse "each machine leases addresses of its own part of the network" make lan0 --dhcp
refuse "range 10.77.1.0-10.77.1.9: 10.77.1.0 is outside of the network" make lan0 --dhcp --dhcp-range 10.77.1.0-10.77.1.9
refuse "peer 192.168.50.$other: 192.168.50.$other is a peer already" make lan0 --peer 192.168.50.$other
refuse "expected a number from 1 to 16777215" vmctl net create lan0 --vxlan 0 --peer 192.168.50.$other
[ ! -e /sys/class/net/lan0 ] || fail "a refused network is there"
# Without leases no port has rules, and no guest is there.
expect "lan0: created" make lan0
expect " overlay " vmctl net list
expect "lan0: deleted" vmctl net delete lan0
expect "lan0: created" make lan0 --vlan-filtering --dhcp --dhcp-range 10.77.0.${machine}0-10.77.0.${machine}9
refuse "an interface of this machine has VXLAN 77 already" vmctl net create lan1 --vxlan 77 --peer 192.168.50.9
[ ! -e /sys/class/net/lan1 ] || fail "a refused network is there"
vmctl net list | grep -qE "^  vxlan77 +overlay +- +- +192.168.50.$other " || fail "no overlay: $(vmctl net list)"
eventually 60 ping -c 1 -W 1 10.77.0.$other

vm=vm$machine
{
    sed 's/quiet/quiet ip=dhcp/' demo.toml
    printf '[[nic]]\nnetwork = "lan0"\n[[nic]]\nnetwork = "lan0"\nvlan = 10\n'
} >$vm.toml
expect "$vm: defined" vmctl create $vm.toml --name $vm
start $vm
own=$(vmctl list --addresses | grep -oE " 10\.77\.0\.${machine}[0-9]\b") || fail "no lease: $(vmctl list --addresses)"
answer $vm "leased" "ip address show eth0 | grep -qw ${own# } && echo leased"
tell $vm "ip address add 10.78.0.$machine/24 dev eth1; ip link set eth1 up"
peer=$(exchange $own)
answer $vm "0 lost" "ping -c 3 -W 5 $peer | grep -q ' 0% packet loss' && echo 0 lost"
answer $vm "large 0 lost" "ping -c 3 -W 5 -s 1400 $peer | grep -q ' 0% packet loss' && echo large 0 lost"
answer $vm "vlan 0 lost" "ping -c 3 -W 5 10.78.0.$other | grep -q ' 0% packet loss' && echo vlan 0 lost"
answer $vm "mtu 1450" 'echo mtu $(cat /sys/class/net/eth0/mtu)'
# Root leases nothing across the cable.
expect " 3 packets received" ping -c 3 -W 5 $peer
tell $vm 'dd if=/dev/urandom of=/tmp/data bs=1M count=4; echo sum $(md5sum </tmp/data)'
eventually 60 printed $vm '^sum '
sum=$(vmctl logs $vm | grep -o '^sum [0-9a-f]*')
if [ "$machine" = 1 ]; then
    tell $vm 'nc -l -p 5000 >/tmp/came; echo came $(md5sum </tmp/came)'
fi
sum=$(exchange "${sum#sum }")
if [ "$machine" = 2 ]; then
    answer $vm sent "until nc $peer 5000 </tmp/data; do sleep 1; done; echo sent"
else
    eventually 60 printed $vm "^came $sum"
fi

# A machine that is no peer: the same one, under another address.
exchange stranger >/dev/null
if [ "$machine" = 2 ]; then
    ip address flush dev eth1
    ip address add 192.168.50.9/24 dev eth1
    answer $vm "100% lost" "ping -c 3 -W 2 $peer | grep -q ' 100% packet loss' && echo 100% lost"
    ip address flush dev eth1
    ip address add 192.168.50.2/24 dev eth1
fi
exchange "no stranger" >/dev/null
if [ "$machine" = 1 ]; then
    nft list table inet microvisor-lan0 | grep -qE 'counter packets [1-9]' || fail "nothing was dropped: $(nft list table inet microvisor-lan0)"
    nft list chain netdev microvisor vxlan77-to | grep -qE '67.* counter packets [1-9]' || fail "requests for leases cross: $(nft list chain netdev microvisor vxlan77-to)"
fi

# A third machine, in place of the peer and beside it.
refuse "reach each other by IPv4" vmctl net set lan0 --peer fd00::9
refuse "nowhere: no such network" vmctl net set nowhere --peer 192.168.50.9
expect "lan0: peers set" vmctl net set lan0 --peer 192.168.50.9
expect "lan0: peers set" vmctl net set lan0 --peer 192.168.50.9
vmctl net list | grep -qE "^  vxlan77 +overlay +- +- +192.168.50.9 " || fail "no new peer: $(vmctl net list)"
ping -c 2 -W 1 10.77.0.$other >/dev/null && fail "a machine that is no peer is reached"
exchange "apart" >/dev/null
expect "lan0: peers set" vmctl net set lan0 --peer 192.168.50.9 --peer 192.168.50.$other
eventually 60 ping -c 1 -W 1 10.77.0.$other
exchange "joined" >/dev/null

# The same with encryption. A machine that has another key than its peer says reaches nobody.
secure() { vmctl net create lan1 --address 10.79.0.$machine/24 --vxlan 78 --wireguard --peer "$@"; }
key=$(vmctl net key) || fail "no key: $key"
[ "$(vmctl net key)" = "$key" ] || fail "the next key is another one"
[ "$(stat -c %a /var/lib/microvisor/wireguard.key)" = 600 ] || fail "others can read the key"
refuse "peer 192.168.50.$other: expected KEY@HOST" secure 192.168.50.$other
refuse "is not a public key" secure x@192.168.50.$other
refuse "that is this machine's own key" secure "$key@192.168.50.$other"
refuse "an interface of this machine has VXLAN 77 already" vmctl net create lan1 --vxlan 77 --wireguard --peer "$(wg genkey | wg pubkey)@192.168.50.9"
[ ! -e /sys/class/net/lan1 ] && [ ! -e /sys/class/net/wg77 ] && [ ! -e /sys/class/net/wg78 ] || fail "a refused network is there"
theirs=$(exchange "$key")
if [ "$machine" = 2 ]; then
    expect "lan1: created" secure "$(wg genkey | wg pubkey)@192.168.50.$other"
else
    expect "lan1: created" secure "$theirs@192.168.50.$other"
fi
exchange "wrong key" >/dev/null
ping -c 3 -W 1 10.79.0.$other >/dev/null && fail "a machine with another key is reached"
exchange "right key" >/dev/null
if [ "$machine" = 2 ]; then
    expect "lan1: deleted" vmctl net delete lan1
    [ ! -e /sys/class/net/wg78 ] || fail "wg78 is left"
    expect "lan1: created" secure "$theirs@192.168.50.$other"
fi
eventually 60 ping -c 1 -W 1 10.79.0.$other
third=$(wg genkey | wg pubkey)
refuse "that is this machine's own key" vmctl net set lan1 --peer "$key@192.168.50.$other"
# What was refused has changed nothing.
expect " 2 packets received" ping -c 2 -W 5 10.79.0.$other
exchange refused >/dev/null
expect "lan1: peers set" vmctl net set lan1 --peer "$third@192.168.50.9" --peer "$theirs@192.168.50.$other"
wg show wg78 peers | grep -q "$third" || fail "no third peer: $(wg show wg78)"
expect " 3 packets received" ping -c 3 -W 5 -s 1300 10.79.0.$other
vmctl net list | grep -qE "^  vxlan78 +encrypted +- +- +192.168.50.9,192.168.50.$other " || fail "no overlay: $(vmctl net list)"
[ "$(cat /sys/class/net/lan1/mtu)" = 1350 ] || fail "MTU of lan1: $(cat /sys/class/net/lan1/mtu)"
wg show wg78 transfer | grep -q "$theirs" || fail "wg78: $(wg show wg78)"
exchange encrypted >/dev/null
expect "lan1: deleted" vmctl net delete lan1
[ ! -e /sys/class/net/vxlan78 ] && [ ! -e /sys/class/net/wg78 ] || fail "devices of lan1 are left"

expect "$vm: stopped" vmctl stop $vm --timeout 60s
expect "lan0: deleted" vmctl net delete lan0
[ ! -e /sys/class/net/vxlan77 ] || fail "vxlan77 is left"
exchange end >/dev/null
