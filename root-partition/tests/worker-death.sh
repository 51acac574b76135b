# A worker dies: its VM has crashed with the reason, others go on, and it starts again.
# timeout: 900
. /lib/testing.sh
up demo --set memory=192M
up other --set memory=192M
worker=$(worker demo)
kill -KILL "$worker"
refuse "worker died: signal 9" vmctl wait demo --timeout 60s
is demo "crashed worker died: signal 9"
expect "agree" vmctl verify
answer other 42 'echo $((6 * 7))'
start demo
answer demo 43 'echo $((6 * 7 + 1))'
expect "agree" vmctl verify
