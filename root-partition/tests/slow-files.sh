# A file system does not answer: whoever asks for its files waits for a while, and nobody else does.
# timeout: 600
. /lib/testing.sh
# An automatic mount whose requests nobody reads. The kernel makes no process of this group wait for it.
modprobe autofs4
mkdir /slow
mkfifo requests
exec 5<>requests
setsid sh -c 'mount -t autofs -o fd=5,pgrp=$$,minproto=5,maxproto=5,indirect none /slow' || fail "no autofs"
kernel_of halts '\364\353\375'
kernel_of other '\364\353\375'
expect defined vmctl create halts.toml
expect defined vmctl create other.toml
expect "other: running" vmctl start other --wait --timeout 60s
kill_daemon
sed -i 's|^kernel = .*|kernel = "/slow/kernel"|' /var/lib/microvisor/halts/config.toml
start_daemon 5>&-
vmctl start halts >answer 2>&1 5>&- &
starting=$!
vmctl attach other disk /slow/disk.raw >attached 2>&1 5>&- &
sleep 1
started=$(cut -d. -f1 /proc/uptime)
refuse "halts is being started: kernel: /slow/kernel" vmctl start halts
refuse "halts is being started" vmctl delete halts
is other running
expect "other: paused" vmctl pause other
expect "other: running" vmctl resume other
expect killed vmctl kill other
[ $(($(cut -d. -f1 /proc/uptime) - started)) -lt 10 ] || fail "others have waited"
wait "$starting" && fail "it was started: $(cat answer)"
[ "$(cat answer)" = "vmctl: halts: kernel: /slow/kernel: no answer within 20 s; the VM was not started" ] ||
    fail "$(cat answer)"
is halts "defined never started"
refuse "halts is being started: kernel: /slow/kernel" vmctl start halts
# Another daemon waits for nothing.
kill_daemon
sed -i 's|^kernel = .*|kernel = "/root/halts"|' /var/lib/microvisor/halts/config.toml
start_daemon 5>&-
expect "halts: running" vmctl start halts --wait --timeout 60s
expect killed vmctl kill halts
