# A guest's kernel panics: the VM has crashed, and the list says why.
# timeout: 600
. /lib/testing.sh
up demo
tell demo 'echo c >/proc/sysrq-trigger'
refuse "kernel panic" vmctl wait demo --timeout 60s
is demo "crashed"
vmctl list | grep -q "kernel panic" || fail "$(vmctl list)"
