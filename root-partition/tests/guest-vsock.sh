# Sockets between programs of VM 0 and programs in a guest, both ways: what is said, who listens, who goes first, large
# transfers; the daemon dies while they are open, and a guest that reboots.
# timeout: 400
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
refuse "web: nobody in the guest listens at port 52" vmctl vsock web 52
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
kill -KILL "$(vmctl doctor | grep -o 'process [0-9]*' | cut -d' ' -f2)"
vmctl daemon >/dev/console 2>&1 5>&- &
eventually 30 vmctl list
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
hold web
tell web 'echo again | vmctl vsock cid:2 82'
wait $listener
[ "$(cat heard)" = again ] || fail "VM 0 heard: $(cat heard)"
expect "web: stopped" vmctl stop web --timeout 60s
[ ! -e $sock ] || fail "$sock is left"
up plain
refuse "plain: it has no socket device" vmctl vsock plain 52
vmctl kill plain >/dev/null
