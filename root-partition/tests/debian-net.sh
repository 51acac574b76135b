# Two Debian guests and VM 0 in one network: leases, names, ssh; TCP and UDP both ways, with offloads and without, with large
# packets and four queues, by vhost-net and by the worker; cards come and go, and the daemon dies, while data flows.
# long: yes
# debian: yes
# timeout: 2400
. /lib/testing.sh
. /lib/debian.sh
mount -t tmpfs tmpfs /debian/tmp
mount -t tmpfs tmpfs /debian/run
expect "lan0: created (nat)" vmctl net create lan0 --address 10.77.0.1/24 --nat --dhcp --address6 fd00:77::1/64 --mtu 9000
expect "lan1: created" vmctl net create lan1 --address 10.78.0.1/24 --dhcp
printf '[[nic]]\nnetwork = "lan0"\nqueues = 4\n' >>debian.toml
clone web --set vcpus=4
clone db --set nic.0.address=10.77.0.10 --set vcpus=2
debian web
mv /dev/vhost-net /tmp/
debian db
mv /tmp/vhost-net /dev/
vmctl list --addresses
vmctl info web | grep -q '^lan0 .*vhost-net.*MTU 9000, queues 4 of 4' || fail "$(vmctl info web)"
vmctl info db | grep -q '^lan0 .*worker.*MTU 9000' || fail "$(vmctl info db)"
for vm in web db; do
    answer $vm state=running 'echo state=$(systemctl is-system-running --wait)'
    expect " 0% packet loss" ping -c 1 -W 5 $vm
done
answer db "fixed 10.77.0.10/24" 'echo fixed $(ip -4 -o address show scope global | grep -o "10[^ ]*/24")'
answer web "names 3" 'echo names $(for name in db db.lan0 10.77.0.1; do ping -c 1 -W 5 $name; done | grep -c "1 received")'
answer web "six" 'ping -6 -c 2 -W 5 fd00:77::1 >/dev/null && ping -6 -c 2 -W 5 db.lan0 >/dev/null && echo six'
answer web "large" 'ping -M do -s 8900 -c 2 -W 5 db >/dev/null && echo large'

# ssh, by the name of the VM.
cat >/bin/ssh <<'END'
#!/bin/sh
exec chroot /debian ssh -i /mnt/id -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=/tmp/known "$@"
END
chmod +x /bin/ssh
for vm in web db; do
    eventually 60 vmctl ssh root@$vm true
    expect "$vm: I am 10.77.0." vmctl ssh root@$vm "echo $vm: I am \$(hostname -I)"
done
[ "$(cut -d' ' -f1 /debian/tmp/known | sort -u | wc -l)" = 2 ] || fail "$(cat /debian/tmp/known)"
[ "$(cut -d' ' -f3 /debian/tmp/known | sort -u | wc -l)" = 2 ] || fail "both guests have one host key"

# iperf WHERE OPTION...: moves data between root or a guest and the server in a guest.
iperf() {
    where=$1
    shift
    case $where in
    root) tool iperf3 "$@" ;;
    *) vmctl ssh root@$where iperf3 "$@" ;;
    esac || fail "iperf3 $where $*"
}
for vm in web db; do
    vmctl ssh root@$vm 'iperf3 -s -D >/dev/null 2>&1 </dev/null'
done
for offloads in on off; do
    for vm in web db; do
        vmctl ssh root@$vm 'nic=$(basename $(ls -d /sys/class/net/e*)); for what in tx rx sg tso gso gro; do ethtool -K $nic $what '$offloads' 2>/dev/null; done; ethtool -k $nic | grep -E "^(tcp-seg|tx-check|generic-rec)"'
    done
    for to in 10.77.0.10 "$(vmctl list --addresses | grep -o 'running .*10.77[^,]*' | grep -o '10.77.*' | grep -v 10.77.0.10 | head -n 1)"; do
        for direction in "" -R; do
            iperf root -c $to -n 8M $direction | grep -E "sender|receiver"
            iperf root -c $to -u -b 4M -n 1M $direction | grep -E "sender|receiver"
        done
    done
    iperf web -c 10.77.0.10 -n 8M -P 4 | grep SUM
    iperf web -c 10.77.0.10 -n 8M -R | grep receiver
    iperf web -c 10.77.0.10 -u -b 4M -n 1M | grep receiver
done

# A card comes and goes, and the daemon dies, while data flows.
iperf root -c 10.77.0.10 -t 40 -J >/tmp/flow &
flow=$!
for round in 1 2 3; do
    expect "db: NIC lan1 attached" vmctl attach db nic network=lan1
    eventually 60 ping -c 1 -W 2 db.lan1
    expect "db: lan1 detached" vmctl detach db lan1
done
kill_daemon
start_daemon
wait $flow || fail "the flow ended: $(tail -n 20 /tmp/flow)"
vmctl net list

# A guest that ends has its address and its name again.
expect "db: stopped (guest powered off)" vmctl stop db --timeout 240s
debian db
eventually 60 ping -c 1 -W 2 db.lan0
for vm in web db; do
    expect "$vm: stopped (guest powered off)" vmctl stop $vm --timeout 240s
done
expect "lan0: deleted" vmctl net delete lan0
dmesg | grep -E 'WARNING: CPU|BUG:|Oops|protection fault' && fail "the kernel complains"
true
