# What test scripts share: `. /lib/testing.sh`.

# Ends the script with a line that says what was not as it should be, and what the VMs were at.
fail() {
    echo "FAILED: $*"
    explain_vms
    exit 1
}

# Says what the VMs are at.
explain_vms() {
    [ -S /run/microvisor/control.sock ] || return 0
    vmctl list
    vmctl list | awk 'NR > 2 { print $2 }' | while read -r vm; do
        echo "== $vm"
        vmctl info "$vm"
        vmctl logs "$vm" | tail -n 5
    done
}

# explain_hang SECONDS: when the script's time is nearly over, says which processes there are, what each of their
# threads waits for, and what the VMs are at. The time has begun before this kernel's clock, and the words take time.
explain_hang() {
    sleep $(($1 * 9 / 10 - 10 - $(cut -d. -f1 /proc/uptime)))
    echo "The script has not ended, and its time is nearly over."
    for process in /proc/[0-9]*; do
        # Kernel threads have no command line.
        command=$(tr '\0' ' ' <"$process/cmdline") && [ -n "$command" ] || continue
        echo "== ${process#/proc/} $command"
        for thread in "$process"/task/*; do
            echo "$(cat "$thread/comm"): system call $(cat "$thread/syscall")"
            cat "$thread/stack"
        done
    done 2>/dev/null
    explain_vms
    vmctl hv-log | tail -n 20
}

# expect WORD COMMAND...: the command succeeds and prints something that contains WORD.
expect() {
    word=$1
    shift
    answer=$("$@" 2>&1) || fail "$*: status $?: $answer"
    case $answer in
    *"$word"*) ;;
    *) fail "$*: not \"$word\", but: $answer" ;;
    esac
}

# refuse WORD COMMAND...: the command fails with something that contains WORD.
refuse() {
    word=$1
    shift
    answer=$("$@" 2>&1) && fail "$*: did not fail: $answer"
    case $answer in
    *"$word"*) ;;
    *) fail "$*: failed not with \"$word\", but: $answer" ;;
    esac
}

# eventually SECONDS COMMAND...: the command succeeds within that time.
eventually() {
    deadline=$(($(cut -d. -f1 /proc/uptime) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || fail "$*: not in time"
        usleep 200000
    done
}

# printed NAME WORD: a guest has written that to its console.
printed() {
    vmctl logs "$1" | grep -q -- "$2"
}

# count NAME WORD: how many lines with that a guest has written to its console.
count() {
    vmctl logs "$1" | grep -c -- "$2"
}

# printed_often NAME COUNT WORD: a guest has written that in as many lines, or in more.
printed_often() {
    [ "$(count "$1" "$3")" -ge "$2" ]
}

# partitions: how many there are, and what memory they hold.
partitions() {
    vmctl doctor --format json | grep -o '[0-9]* partitions* with [^"]*'
}

# worker NAME: the process ID of a VM's worker.
worker() {
    vmctl info "$1" --format json | grep -o '"worker_pid": *[0-9]*' | grep -o '[0-9]*'
}

# is NAME WORD...: `vmctl list` has this line about a VM, with the state and the reason.
is() {
    name=$1
    shift
    line=$(vmctl list | tr -s ' ' | grep " $name ") || fail "$name is not in the list: $(vmctl list)"
    case $line in
    *"$*"*) ;;
    *) fail "$name is not \"$*\", but: $line" ;;
    esac
}

# up NAME [OPTION...]: makes a demo guest of that name, and waits until its shell is there.
up() {
    name=$1
    shift
    expect "$name: defined" vmctl create demo.toml --name "$name" "$@"
    start "$name"
}

# start NAME: starts a guest, waits until its shell is there, and holds its console for `tell`.
start() {
    before=$(count "$1" 'demo guest: up')
    expect "$1: running" vmctl start "$1" --wait --timeout 60s
    hold "$1"
    eventually 240 boots "$1" $((before + 1))
}

# hold NAME: attaches to a guest's console for `tell`, until the guest ends. A console that was held before is let go: of two
# that read the same typing, one takes the lines and may have no guest to give them to.
hold() {
    if [ -f "/tmp/$1.held" ]; then
        kill "$(cat "/tmp/$1.held")" 2>/dev/null
    fi
    if [ ! -p "/tmp/$1.typing" ]; then
        mkfifo "/tmp/$1.typing"
        # Keeps it open between one line and the next.
        sleep 100000 <>"/tmp/$1.typing" &
    fi
    vmctl console "$1" <"/tmp/$1.typing" >/dev/null 2>&1 &
    echo $! >"/tmp/$1.held"
}

# boots NAME COUNT: a guest's shell has come up that often.
boots() {
    printed_often "$1" "$2" 'demo guest: up'
}

# tell NAME COMMAND: types a command at a guest's shell.
tell() {
    name=$1
    shift
    echo "$*" >"/tmp/$name.typing"
}

# answer NAME WORD COMMAND: the guest's shell answers a command with a line that is WORD alone.
answer() {
    name=$1
    word=$2
    shift 2
    tell "$name" "$*"
    deadline=$(($(cut -d. -f1 /proc/uptime) + 60))
    until printed "$name" "^$word.\$"; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] ||
            fail "$name does not answer $word: $(vmctl logs "$name" | tail -n 15)"
        usleep 200000
    done
}

# kernel_of FILE CODE: makes a Multiboot kernel of this machine code (32-bit, in the escapes of printf). With a
# configuration FILE.toml beside it, it boots in no time.
kernel_of() {
    printf '\002\260\255\033\000\000\001\000\376\117\121\344' >"$1"
    printf '\000\000\020\000\000\000\020\000\000\020\020\000\000\000\000\000\040\000\020\000' >>"$1"
    printf "$2" >>"$1"
    truncate -s 4096 "$1"
    printf 'name = "%s"\nmemory = "16M"\nkernel = "%s"\n' "$1" "$1" >"$1.toml"
}

# daemon: the daemon's process ID.
daemon() {
    vmctl doctor | grep -o 'process [0-9]*' | cut -d' ' -f2
}

# kill_daemon: the daemon ends without time for anything.
kill_daemon() {
    kill -KILL "$(daemon)" || fail "there is no daemon to kill"
}

# start_daemon: starts a daemon after the last one has ended, and waits until it answers.
start_daemon() {
    vmctl daemon >/dev/console 2>&1 &
    eventually 30 vmctl list
}
