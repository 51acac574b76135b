# What is wrong with a configuration is said in one line, and leaves nothing behind.
# timeout: 600
. /lib/testing.sh
refuse "kernel: /root/nothing: no such file" vmctl create demo.toml --set kernel=nothing
refuse "kernel" vmctl create demo.toml --set kernel=demo.toml
head -c 100000 vmlinuz >truncated
refuse "kernel" vmctl create demo.toml --set kernel=truncated
refuse "vcpus=0: expected a number from 1 to 64" vmctl create demo.toml --set vcpus=0
refuse "vcpus=1000: expected a number from 1 to 64" vmctl create demo.toml --set vcpus=1000
refuse "memory" vmctl create demo.toml --set memory=1000T
sed 's/^vcpus/vcups/' demo.toml >wrong.toml
refuse "wrong.toml:3" vmctl create wrong.toml
refuse "vcups" vmctl create wrong.toml
refuse "no such file" vmctl create nothing.toml
refuse "nobody" vmctl start nobody
refuse "nobody" vmctl console nobody
[ "$(vmctl list | wc -l)" = 2 ] || fail "something is left: $(vmctl list)"
# More memory than root has is noticed when it is needed.
expect defined vmctl create demo.toml --name big --set memory=100G
refuse "100G is more than root has" vmctl start big --wait --timeout 60s
expect deleted vmctl delete big
expect defined vmctl create demo.toml
refuse "demo" vmctl create demo.toml
kill_daemon
refuse "daemon" vmctl list
refuse "daemon" vmctl create demo.toml
