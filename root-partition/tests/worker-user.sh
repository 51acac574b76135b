# Each worker is a user of its own, who has no capability, no device and no file but the directory of its console log.
# timeout: 600
. /lib/testing.sh
status() { awk -v key="$2:" '$1 == key { $1 = ""; print substr($0, 2) }' "/proc/$(worker "$1")/status"; }
up one --set console.log_limit=16K --set console.device=virtio --set 'cmdline="console=hvc0 quiet"'
up two
first=$((0x70000000))
for name in one two; do
    id=$(vmctl list | awk -v name=$name '$2 == name { print $1 }')
    uid=$((first + id))
    [ "$(status $name Uid)" = "$uid $uid $uid $uid" ] || fail "$name, partition $id: user $(status $name Uid)"
    [ "$(status $name Gid)" = "$uid $uid $uid $uid" ] || fail "$name: group $(status $name Gid)"
    [ -z "$(status $name Groups)" ] || fail "$name: groups $(status $name Groups)"
    for set in CapInh CapPrm CapEff CapAmb; do
        [ "$(status $name $set)" = 0000000000000000 ] || fail "$name: $set $(status $name $set)"
    done
    [ "$(status $name NoNewPrivs)" = 1 ] || fail "$name: can gain privileges"
    files=$(ls -l "/proc/$(worker $name)/fd")
    case $files in
    */dev/microvisor*) fail "$name has the device: $files" ;;
    esac
    # The daemon's files are not the worker's.
    for file in config.toml worker.log; do
        [ "$(stat -c %u /var/lib/microvisor/$name/$file)" = 0 ] || fail "$name: $file: $(ls -ln /var/lib/microvisor/$name)"
    done
    [ "$(stat -c '%u %a' /var/lib/microvisor/$name/log)" = "$uid 700" ] || fail "$name: $(ls -ln /var/lib/microvisor/$name)"
done
# The log of the console is still turned over, and its parts make one.
tell one 'seq 1000 | sed "s/.*/line & of many/"'
eventually 240 printed one 'line 1000 of many'
[ -e /var/lib/microvisor/one/log/console.log.1 ] || fail "no second log: $(ls -l /var/lib/microvisor/one/log)"
[ "$(count one 'line 999 of many')" = 1 ] || fail "the log: $(vmctl logs one | tail)"
# The next start has it again, whoever its user is then.
vmctl stop two --wait >/dev/null || fail "stop two"
vmctl kill one >/dev/null || fail "kill one"
start two
start one
printed two 'demo guest: up' || fail "the log of two: $(vmctl logs two | tail)"
