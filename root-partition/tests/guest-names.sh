# Guests are leased their addresses, and their names are known to each other and to root; whatever dies comes back, and
# whoever leaves is forgotten.
# timeout: 600
. /lib/testing.sh
dir=/run/microvisor/networks/lan0
dnsmasq() { pidof dnsmasq; }
{ cat demo.toml; printf '[[nic]]\nnetwork = "lan0"\n'; } >guest.toml
sed -i 's/quiet/quiet ip=dhcp/' guest.toml
hosts=$(cat /etc/hosts)

# What can't be is undone.
mv /sbin/dnsmasq .
refuse "lan0: the program dnsmasq is missing: install the package dnsmasq-base" vmctl net create lan0 --address 10.77.0.1/24 --dhcp
mv dnsmasq /sbin/
nc -l -p 53 >/dev/null &
nc=$!
eventually 5 grep -q ':0035 .* 0A ' /proc/net/tcp /proc/net/tcp6
refuse "lan0: dnsmasq: failed to create listening socket for 10.77.0.1: Address already in use" \
    vmctl net create lan0 --address 10.77.0.1/24 --dhcp
kill $nc
refuse "--address" vmctl net create lan0 --dhcp
refuse "a prefix of IPv6 has 64 bits" vmctl net create lan0 --address6 fd00:77::1/48
refuse "not an address that a host can have" vmctl net create lan0 --address6 fe80::1/64
[ "$(vmctl net list | wc -l)" = 1 ] && [ -z "$(ls /run/microvisor/networks)" ] && [ -z "$(dnsmasq)" ] ||
    fail "left: $(vmctl net list; ls /run/microvisor/networks; ps)"
nft list tables | grep -q microvisor-lan0 && fail "a table is left"

expect "lan0: created (nat)" vmctl net create lan0 --address 10.77.0.1/24 --nat --dhcp --address6 fd00:77::1/64
refuse "lan1: fd00:77::5/64 overlaps lan0's fd00:77::1/64" vmctl net create lan1 --address6 fd00:77::5/64
vmctl net list | grep -qE '^lan0 +no-carrier +nat,dhcp +- +10.77.0.1/24,fd00:77::1/64 ' || fail "$(vmctl net list)"
[ "$(ps | grep '[d]nsmasq --' | awk '{ print $2 }')" = nobody ] || fail "$(ps)"

# One guest has an address of its configuration, the other one of the network's.
expect "web: defined" vmctl create guest.toml --name web
expect "db: defined" vmctl create guest.toml --name db --set nic.0.address=10.77.0.10 --set nic.0.address6=fd00:77::10
for vm in web db; do
    expect "$vm: running" vmctl start $vm --wait --timeout 60s
done
for vm in web db; do
    hold $vm
    eventually 240 boots $vm 1
done
web=$(vmctl list --addresses --format json | tr -d ' \n' | grep -o '"name":"web".*' | grep -o '10\.77\.0\.[0-9]*' | head -n 1)
vmctl list --addresses | grep -qE "^ +[12] +web .* $web,fd00:77::5054:[0-9a-f:]*\$" || fail "$(vmctl list --addresses)"
vmctl list --addresses | grep -qE "^ +[12] +db .* 10.77.0.10,fd00:77::10,fd00:77::5054:[0-9a-f:]*\$" || fail "$(vmctl list --addresses)"
answer web "leased $web/24 1500" 'echo leased $(ip -4 address show eth0 | grep -o "10.77[^ ]*") $(cat /sys/class/net/eth0/mtu)'
answer db "leased 10.77.0.10/24" 'echo leased $(ip -4 address show eth0 | grep -o "10.77[^ ]*")'
answer web "I am web" 'echo I am $(hostname)'
answer web "by 10.77.0.1" 'echo by $(ip route | grep -o "^default via [^ ]*" | cut -d" " -f3)'

# Names, in VM 0 and among guests, by IPv4 and IPv6.
for name in web web.lan0 db db.lan0; do
    expect " 0% packet loss" ping -c 1 -W 5 $name
done
answer web "name 0% lost" 'ping -4 -c 1 -W 5 db | grep -o " 0% packet loss" >/dev/null && echo name 0% lost'
answer db "name 0% lost" 'ping -4 -c 1 -W 5 web.lan0 | grep -o " 0% packet loss" >/dev/null && echo name 0% lost'
# Both guests made their IPv6 addresses by themselves.
eventually 30 ping6 -c 1 -W 2 web
answer web "six 0% lost" 'until ping -6 -c 1 -W 2 fd00:77::1 >/dev/null; do :; done; ping -6 -c 1 -W 5 $(nslookup -type=aaaa db.lan0 | grep -o "fd00:77::5054.*") | grep -o " 0% packet loss" >/dev/null && echo six 0% lost'
# What a guest calls itself is nothing to the others.
answer web "no name" 'udhcpc -n -q -i eth0 -s /bin/true -x hostname:bank >/dev/null 2>&1; nslookup bank.lan0 >/dev/null || echo no name'

# `vmctl ssh` runs ssh with the address.
printf '#!/bin/sh\necho ssh "$@"\n' >/bin/ssh
refuse "Permission denied" vmctl ssh web
chmod +x /bin/ssh
expect "ssh -o HostKeyAlias=db -l root -p 22 10.77.0.10 uname -a" vmctl ssh root@db -p 22 uname -a
rm /bin/ssh
refuse "the program ssh is missing: install the package openssh-client" vmctl ssh db
refuse "nobody: no such VM" vmctl ssh nobody

# The program dies; the daemon starts another. Both die, and the next daemon starts one.
kill -KILL "$(dnsmasq)"
eventually 10 dnsmasq
answer web "again 0% lost" 'until ping -4 -c 1 -W 5 db >/dev/null; do :; done; echo again 0% lost'
kill_daemon
kill -KILL "$(dnsmasq)"
start_daemon
eventually 10 dnsmasq
old=$(dnsmasq)
kill_daemon
start_daemon
# The next daemon does not go on with the old program.
eventually 10 sh -c "new=\$(pidof dnsmasq) && [ \"\$new\" != $old ]"
# A guest that asks again has the same address.
answer db "renewed 10.77.0.10" 'echo renewed $(udhcpc -n -q -i eth0 -s /lib/udhcpc 2>&1 | grep -o "lease of [^ ]*" | cut -d" " -f3)'
answer db "still 0% lost" 'ping -4 -c 1 -W 5 web | grep -o " 0% packet loss" >/dev/null && echo still 0% lost'

# Whoever leaves is forgotten, but keeps its address for the next time; others' addresses and root's are refused.
expect killed vmctl kill web
eventually 10 sh -c '! grep -q web /etc/hosts'
refuse "web: no address is known (stopped)" vmctl ssh web
grep -q " db.lan0 db" /etc/hosts || fail "$(cat /etc/hosts)"
start web
grep -q "^$web web.lan0 web\$" /etc/hosts || fail "another address: $(cat /etc/hosts)"
expect killed vmctl kill web
for wrong in "10.77.0.10 VM db has the address" "10.77.0.1 that is root's own" "10.77.0.0 that is the network"; do
    expect "wrong: defined" vmctl create guest.toml --name wrong --set nic.0.address="${wrong%% *}"
    refuse "${wrong#* }" vmctl start wrong --wait --timeout 60s
    expect deleted vmctl delete wrong
done
expect "wrong: defined" vmctl create guest.toml --name wrong --set nic.0.address6=fd00:78::9
refuse "fd00:78::9: that is outside of the network (fd00:77::1/64)" vmctl start wrong --wait --timeout 60s

# Somebody removes the bridge under a guest that runs; nothing of it is left, and it can be made again.
ip link delete lan0
eventually 10 sh -c '! pidof dnsmasq && [ ! -e /run/microvisor/networks/lan0 ]'
eventually 10 sh -c '! nft list tables | grep -q microvisor-lan0'
[ "$(cat /etc/hosts)" = "$hosts" ] || fail "names are left: $(cat /etc/hosts)"
answer db "alive" 'echo alive'
expect "lan0: created (isolated)" vmctl net create lan0 --address 10.77.0.1/24 --dhcp --mtu 1400
expect "lan0: deleted" vmctl net delete lan0
[ -z "$(dnsmasq)" ] && [ -z "$(ls /run/microvisor/networks)" ] || fail "left: $(ps)"
expect killed vmctl kill db
true
