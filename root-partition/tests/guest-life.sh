# A guest's whole life: defined, running, its shell, off, on again, stopped by its power button, killed, gone.
# timeout: 600
. /lib/testing.sh
expect "demo: defined (never started)" vmctl create demo.toml
is demo "defined never started"
start demo
is demo running
answer demo 42 'echo $((6 * 7))'
vmctl info demo | grep -q '^exits .*HLT [1-9]' || fail "no exits: $(vmctl info demo)"
tell demo poweroff
expect "demo: stopped (guest powered off)" vmctl wait demo --timeout 60s
is demo "stopped guest powered off"
start demo
expect "demo: stopped" vmctl stop demo --timeout 60s
is demo stopped
expect "demo: running" vmctl start demo --wait
expect "demo: stopped (killed)" vmctl kill demo
expect "demo: stopped (killed)" vmctl kill demo
expect "demo: deleted" vmctl delete demo
vmctl list | grep -q ' demo ' && fail "deleted, but listed"
expect " root " vmctl list
