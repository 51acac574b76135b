# A paused guest stands still, and goes on when it is resumed.
# timeout: 600
. /lib/testing.sh
up demo
tell demo 'while sleep 1; do echo tick; done'
eventually 60 printed demo '^tick'
expect "demo: paused" vmctl pause demo
before=$(vmctl logs demo | wc -l)
sleep 4
[ "$(vmctl logs demo | wc -l)" = "$before" ] || fail "it wrote on while it was paused"
is demo paused
expect "demo: running" vmctl resume demo
more() { [ "$(vmctl logs demo | wc -l)" -gt "$before" ]; }
eventually 60 more
