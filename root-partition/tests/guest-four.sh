# Four guests at once, each its own memory, started and ended in another order.
# timeout: 900
# long: yes
. /lib/testing.sh
for name in a b c d; do
    expect "$name: defined" vmctl create demo.toml --name $name --set memory=192M
done
for name in c a d b; do
    expect "$name: running" vmctl start $name --wait
done
for name in a b c d; do
    eventually 400 boots $name 1
    hold $name
    tell $name "echo secret of $name >/tmp/secret"
done
for name in d c b a; do
    answer $name "read:secret of $name" 'echo "read:$(cat /tmp/secret)"'
    is $name running
done
expect "agree" vmctl verify
tell b poweroff
expect "guest powered off" vmctl wait b --timeout 60s
expect killed vmctl kill d
answer a "read:secret of a" 'clear; echo "read:$(cat /tmp/secret)"'
start b
expect "agree" vmctl verify
for name in a c b; do
    expect killed vmctl kill $name
done
for name in a b c d; do
    expect deleted vmctl delete $name
done
