# The daemon dies and comes again: the guests have not noticed, and it knows them.
# timeout: 600
. /lib/testing.sh
up demo
kill_daemon
refuse "daemon" vmctl list
start_daemon
is demo running
answer demo 42 'echo $((6 * 7))'
tell demo poweroff
expect "guest powered off" vmctl wait demo --timeout 60s
