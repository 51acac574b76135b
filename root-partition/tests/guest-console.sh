# A guest's console is a virtio console: it writes all that it has to say, reads what users type, learns the size of
# their terminal, and shows its last words when it powers off.
# timeout: 600
. /lib/testing.sh
# A VM whose configuration has no command line gets one that names its console.
sed "/^cmdline/d" demo.toml >plain.toml
expect "plain: defined" vmctl create plain.toml --name plain --set console.device=virtio
expect "cmdline         console=hvc0" vmctl info plain
up demo --set console.device=virtio --set vcpus=2 --set 'cmdline="console=hvc0 quiet"'
answer demo "tty /dev/hvc0" 'echo tty $(tty)'
answer demo "console hvc0" 'echo console $(cat /sys/class/tty/console/active)'

# Much output, all of it in order. The guest's kernel must not write its own messages in between, such as "hrtimer:
# interrupt took 11227241 ns" on a busy machine.
answer demo "quiet" 'dmesg -n 1; echo qui""et'
tell demo 'seq 2000; echo al""l'
eventually 120 printed demo '^all.$'
seq 2000 >/tmp/numbers
vmctl logs demo | tr -d '\r' | sed -n '/^1$/,/^2000$/p' | cmp - /tmp/numbers || fail "output is lost"

# More typing than the console keeps, while the guest does not read. The echo is off before the typing starts: echoed
# characters would stand before the sum in its line.
answer demo "silent" 'stty -echo; echo silent; sleep 2; head -n 1000 | md5sum; stty echo; echo re""ad'
seq 1000 | sed 's/^/a line that is not short: /' >/tmp/lines
cat /tmp/lines >/tmp/demo.typing
eventually 60 printed demo '^read.$'
printed demo "^$(md5sum </tmp/lines | cut -d' ' -f1)" || fail "typing is lost"

# An interrupt ends what runs in the foreground, and nothing else.
tell demo 'sleep 1000'
sleep 1
printf '\003' >/tmp/demo.typing
answer demo 43 'echo $((6 * 7 + 1))'
printf '\003' >/tmp/demo.typing
answer demo 44 'echo $((6 * 7 + 2))'

# The size of the user's terminal.
stty -F /dev/tty2 rows 33 columns 101
timeout 3 vmctl console demo </dev/null >/dev/tty2 2>/dev/null
answer demo "size 33 101" 'echo size $(stty size)'

# Output of the serial port is shown as well.
answer demo "serial" 'echo serial >/dev/ttyS0'

# The last words. The kernel's own last message is lost: it resets the device before.
tell demo 'seq 50; echo last""words; poweroff -f'
expect "guest powered off" vmctl wait demo --timeout 60s
vmctl logs demo | grep -q "^lastwords" || fail "the last words are lost: $(vmctl logs demo | tail -n 3)"
