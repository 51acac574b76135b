# Sockets between programs of VM 0 and programs in a guest, both ways: what is said, who listens, who goes first, large
# transfers; the daemon dies while they are open, and a guest that reboots.
# The same by root's kernel.
# timeout: 500
. /lib/testing.sh
# The guest needs a program that knows such sockets.
{ cat initrd && (cd / && echo bin/vmctl | cpio -o -H newc); } >initrd-vsock
{ sed 's/"initrd"/"initrd-vsock"/' demo.toml && printf '[vsock]\ncid = 9\n'; } >web.toml
sock=/run/microvisor/vsock/web
expect "web: defined" vmctl create web.toml --name web
refuse "web: it is defined; \"vmctl start web\"" vmctl vsock web 52
start web
vmctl info web | grep -qE "^vsock +CID 9 by $sock\$" || fail "web: $(vmctl info web)"
[ "$(stat -c %a /run/microvisor/vsock)" = 700 ] || fail "others can enter /run/microvisor/vsock"

# From VM 0 to the guest.
refuse "web: no program in the guest listens at port 52" vmctl vsock web 52
tell web 'while :; do echo to root | vmctl vsock cid:9 52 --listen; done &'
asks() { [ "$(echo to the guest | vmctl vsock web 52)" = "to root" ]; }
eventually 30 asks
eventually 20 printed web 'to the guest'

# From the guest to VM 0.
answer web "nobody" 'vmctl vsock cid:2 80 </dev/null 2>/tmp/why || echo nobody'
answer web "no such guest" 'vmctl vsock cid:12 80 </dev/null 2>/tmp/why || echo no such guest'
echo hello guest | vmctl vsock web 80 --listen >heard &
eventually 20 test -S ${sock}_80
refuse "${sock}_80: another program listens there" vmctl vsock web 80 --listen
answer web "hello guest" 'echo hello root | vmctl vsock cid:2 80'
wait $!
[ "$(cat heard)" = "hello root" ] || fail "VM 0 heard: $(cat heard)"
[ ! -e ${sock}_80 ] || fail "${sock}_80 is left"

vmctl vsock web 80 --listen </dev/null 2>/dev/null &
eventually 20 test -S ${sock}_80
kill $!
wait $! 2>/dev/null && fail "a killed listener succeeds"
[ ! -e ${sock}_80 ] || fail "an interrupted listener has left ${sock}_80"

# Large transfers, and while one goes on, the daemon ends and another one comes.
dd if=/dev/urandom of=data bs=1M count=16 2>/dev/null
sum=$(md5sum <data | cut -d' ' -f1)
tell web 'vmctl vsock cid:9 60 --listen >/tmp/data </dev/null; echo sum $(md5sum </tmp/data)'
mkfifo slow
exec 5<>slow
connects() {
    vmctl vsock web 60 <slow 5>&- &
    sleep 1
    kill -0 $! 2>/dev/null
}
eventually 30 connects
head -c 8000000 data >&5
kill_daemon
start_daemon 5>&-
tail -c +8000001 data >&5
exec 5>&-
eventually 60 printed web "^sum $sum"
vmctl vsock web 81 --listen >back </dev/null &
listener=$!
eventually 20 test -S ${sock}_81
tell web 'vmctl vsock cid:2 81 </tmp/data'
wait $listener
[ "$(md5sum <back | cut -d' ' -f1)" = "$sum" ] || fail "what the guest sent came otherwise"

# A guest that reboots has a new device, and what listens in VM 0 stays.
vmctl vsock web 82 --listen >heard </dev/null &
listener=$!
tell web reboot
eventually 240 boots web 2
[ -S ${sock}_82 ] || fail "the reboot took ${sock}_82 away"
tell web 'echo again | vmctl vsock cid:2 82'
wait $listener
[ "$(cat heard)" = again ] || fail "VM 0 heard: $(cat heard)"
expect "web: stopped" vmctl stop web --timeout 60s
[ ! -e $sock ] || fail "$sock is left"

# Root's kernel serves the device of this one: both sides have addresses.
sed 's/^cid = 9/cid = 10\nvhost = true/' web.toml >kernel.toml
expect "kernel: defined" vmctl create kernel.toml --name kernel
mv /dev/vhost-vsock .
refuse "vsock: /dev/vhost-vsock: No such file or directory" vmctl start kernel --wait --timeout 60s
mv vhost-vsock /dev/
start kernel
vmctl info kernel | grep -qE '^vsock +CID 10 by vhost-vsock$' || fail "kernel: $(vmctl info kernel)"
[ ! -e /run/microvisor/vsock/kernel ] || fail "kernel has a Unix socket"
tell kernel 'vmctl vsock cid:10 60 --listen >/tmp/data </dev/null; echo sum $(md5sum </tmp/data)'
sends() { vmctl vsock kernel 60 <data; }
eventually 60 sends
eventually 60 printed kernel "^sum $sum"
vmctl vsock kernel 81 --listen >back </dev/null &
listener=$!
answer kernel sent 'until vmctl vsock cid:2 81 </tmp/data; do sleep 1; done; echo sent'
wait $listener
[ "$(md5sum <back | cut -d' ' -f1)" = "$sum" ] || fail "what the guest sent came otherwise"
expect "twin: defined" vmctl create kernel.toml --name twin
refuse "vsock: cid 10: another VM has this address" vmctl start twin --wait --timeout 60s
vmctl kill kernel >/dev/null
expect "plain: defined" vmctl create demo.toml --name plain
refuse "plain: it has no socket device" vmctl vsock plain 52
