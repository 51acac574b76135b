# Host networks: made, listed, removed and refused; VLANs are kept apart; NAT leads out, isolated networks do not.
# tests: driver-tests
# timeout: 600
. /lib/testing.sh
links() { ip link | grep -c '^[0-9]'; }
before=$(links)
[ "$(vmctl net list)" = "NAME  STATE  MODE  VM  ADDRESS  MAC  VLANS  LIMIT  SENT  RECEIVED  DROPPED" ] || fail "networks: $(vmctl net list)"
expect "lan0: created (isolated)" vmctl net create lan0
expect "lan1: created (nat)" vmctl net create lan1 --address 10.77.0.1/24 --nat
expect "lan2: created (isolated)" vmctl net create lan2 --address 10.78.0.1/24 --vlan-filtering
vmctl net list | grep -qE '^lan0 +no-carrier +isolated +- +- +[0-9a-f:]{17} +- +- +- +- +-$' || fail "lan0: $(vmctl net list)"
vmctl net list | grep -qE '^lan1 +no-carrier +nat +- +10.77.0.1/24 +[0-9a-f:]{17} +- ' || fail "lan1: $(vmctl net list)"
expect '"vlan_filtering": true' vmctl net list --format json
ip address show lan1 | grep -q 'inet 10.77.0.1/24' || fail "$(ip address show lan1)"
[ "$(cat /sys/class/net/lan2/bridge/vlan_filtering)" = 1 ] || fail "lan2 does not filter"

# The kernel keeps them, whoever else dies.
kill_daemon
vmctl daemon >/dev/console 2>&1 &
expect lan2 vmctl net list
eventually 30 vmctl list

refuse "lan0: there is a network of this name" vmctl net create lan0
refuse "eth0: an interface of this name is no network of vmctl's" vmctl net create eth0
refuse "eth0: an interface of this name is no network of vmctl's" vmctl net delete eth0
refuse "lan9: no such network" vmctl net delete lan9
refuse '"abcdefghijklmnop" is not an interface' vmctl net create abcdefghijklmnop
refuse '"a/b" is not an interface' vmctl net create a/b
refuse '"10.1.0.1" is not an IPv4 address with a prefix' vmctl net create lan3 --address 10.1.0.1
refuse "10.1.0.1/33: a prefix has 8 to 30 bits" vmctl net create lan3 --address 10.1.0.1/33
refuse "10.1.0.0/16: that is the network" vmctl net create lan3 --address 10.1.0.0/16
refuse "10.1.255.255/16: that is the broadcast address" vmctl net create lan3 --address 10.1.255.255/16
refuse '"all": the kernel uses this name' vmctl net create all
refuse '"default": the kernel uses this name' vmctl net create default
refuse '".." is not an interface' vmctl net create ..
refuse "MTU 67: expected a number from 68 to 65535" vmctl net create lan3 --mtu 67
refuse "lan3: 10.77.0.9/16 overlaps lan1's 10.77.0.1/24" vmctl net create lan3 --address 10.77.0.9/16
refuse "overlaps eth0's 10.0.2.15/24" vmctl net create lan3 --address 10.0.2.1/24
refuse "--address" vmctl net create lan3 --nat
ip link add foreign type bridge || fail "a bridge of somebody else's"
refuse "foreign: an interface of this name" vmctl net delete foreign
ip link delete foreign
vmctl net delete lan9 2>/dev/null
[ $? = 4 ] || fail "no exit code of its own for what is not there"

# A network that somebody removed by hand is made again. With its bridge went that forwarding was its doing.
ip link delete lan1
echo 0 >/proc/sys/net/ipv4/ip_forward
expect "lan1: created" vmctl net create lan1 --address 10.77.0.1/24 --nat
[ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || fail "nothing is forwarded"
for name in lan0 lan1 lan2; do
    expect "$name: deleted" vmctl net delete $name
done
[ "$(cat /proc/sys/net/ipv4/ip_forward)" = 0 ] || fail "still forwarding"
[ "$(links)" = "$before" ] || fail "left: $(ip link)"
./driver-tests --test-threads=1 vm0::networks || fail "tests"
[ "$(links)" = "$before" ] || fail "left: $(ip link)"
dmesg | grep -E 'WARNING: CPU|BUG:|Oops|protection fault' && fail "the kernel complains"

# The tables of other programs come first: as Docker, ufw and firewalld make them. They stay as they are, and what they
# drop is said. Without a guest no rule needs a module of its own.
nft -f - <<'EOF' || fail "foreign tables"
table ip filter {
    chain DOCKER-USER { return; }
    chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }
    chain ufw-user-input { }
    chain INPUT { type filter hook input priority filter; policy accept; jump ufw-user-input; }
}
table ip nat {
    chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; ip saddr 172.17.0.0/16 oifname != "docker0" masquerade; }
}
table inet firewalld {
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; ct state { established, related } accept; }
}
EOF
others() { nft list ruleset | sed '/^table netdev microvisor {$/,/^}$/d'; }
foreign=$(others)
expect "lan0: table ip filter, chain FORWARD drops forwarded packets: add a rule there that accepts those of this interface
vmctl: lan0: table inet firewalld, chain filter_FORWARD drops forwarded packets: add a rule there that accepts those of this interface
lan0: created (nat)" vmctl net create lan0 --address 10.77.0.1/24 --nat
nft list table inet microvisor-lan0 | grep -q 'ip saddr 10.77.0.0/24 oifname != "lan0" masquerade' || fail "$(nft list ruleset)"
[ "$(vmctl net create lan1 2>&1)" = "lan1: created (isolated)" ] || fail "lan1"
expect deleted vmctl net delete lan1
expect deleted vmctl net delete lan0
[ "$(others)" = "$foreign" ] || fail "foreign tables changed: $(nft list ruleset)"
nft flush ruleset

# A kernel without bridges or masquerading says so, and nothing is left: no rule holds a module.
rmmod bridge || fail "bridge is in use"
mv /lib/modules/*/bridge.ko .
refuse "lan0: this kernel has no bridges" vmctl net create lan0 --address 10.77.0.1/24 --nat
mv bridge.ko /lib/modules/*/
eventually 10 rmmod nft_masq
eventually 10 rmmod nft_chain_nat
rm /lib/modules/*/nft_masq.ko
refuse "lan0: this kernel's packet filter lacks one of" \
    vmctl net create lan0 --address 10.77.0.1/24 --nat
[ "$(links)" = "$before" ] || fail "left: $(ip link)"
expect "lan0: created" vmctl net create lan0 --address 10.77.0.1/24
expect "lan0: deleted" vmctl net delete lan0
true
