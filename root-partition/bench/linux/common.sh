# What the measurements of whole guests have in common. The script that reads this has functions for its hypervisor:
#   define NAME KERNEL MEMORY OPTIONS   defines a guest with a kernel (linux or kernel) and its command line
#   start NAME                          starts it
#   finish NAME                         waits until it has ended, and removes all of it
#   show NAME                           prints its console's output, after `finish`
#   processes                           prints the processes of the guests
samples=3

# row ID OPERATIONS SAMPLE...: prints a result.
row() {
    id=$1 operations=$2
    shift 2
    echo "bench - $id: $operations: $*"
}

# timed COMMAND...: prints the ticks that it takes.
timed() {
    before=$(ticks)
    "$@" >&2
    echo $(($(ticks) - before))
}

# repeated COMMAND...: prints the ticks of each sample, after a run that fills caches.
repeated() {
    timed "$@" >/dev/null
    for _ in $(seq $samples); do
        timed "$@"
    done
}

once() {
    define one "$@" && start one && finish one
}

# The bytes that the guests' processes have, without the guests' own memory of 64 MiB each.
own_memory() {
    for process in $(processes); do
        cat "/proc/$process/smaps"
    done | awk '/^[0-9a-f]+-/ { whole = 0 }
                /^Size:/ { whole = $2 == 65536 }
                /^Pss:/ && !whole { sum += $2 }
                END { print sum * 1024 }'
}

# The bytes of free memory of the kernel, without what it can give back.
kernels_free_memory() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    awk '/^MemAvailable:/ { print $2 * 1024 }' /proc/meminfo
}

# The same of the whole machine. A hypervisor that has memory of its own has its own way.
free_memory() {
    kernels_free_memory
}

# The hundredths of a second in which the CPU had nothing to do.
idle_time() {
    awk '/^cpu / { print $5 }' /proc/stat
}

# Waits until the guests have started: the CPU has nothing to do for most of a second.
settle() {
    idle=0
    while [ "$idle" -lt 90 ]; do
        before=$(idle_time)
        sleep 1
        idle=$(($(idle_time) - before))
    done
}

# memory GUESTS: what each of some guests takes that halt at once.
memory() {
    free=$(free_memory)
    for number in $(seq "$1"); do
        define "g$number" kernel 64M halt && start "g$number" || return
    done
    settle
    row "memory-own-$1" "$1" "$(own_memory)"
    # What a single VM takes is lost in what the kernel does meanwhile.
    [ "$1" = 1 ] || row "memory-all-$1" "$1" "$((free - $(free_memory)))"
    for number in $(seq "$1"); do
        finish "g$number" || return
    done
}

# What the plugin of QEMU's counts, a segment each: from the command to a guest's first instruction...
count_start() {
    once kernel 64M end
    # Until what the first start had the kernel load is loaded.
    sleep 5
    define first kernel 64M end
    ticks begin
    start first
    # The guest's first instruction is a mark, too, and comes when the start has returned.
    sleep 1
    ticks end
    finish first
}

# ... and 20 seconds of a guest that sleeps.
count_idle() {
    define idle linux 256M sleeps=1 && start idle
    sleep 10
    ticks begin
    sleep 20
    ticks end
}

# Measures guests with the bench kernel.
measure() {
    row life 1 $(repeated once kernel 64M end)
    for guests in 1 10 100; do
        memory $guests || return
    done
}

# Measures guests with Linux.
measure_linux() {
    row linux-boot 1 $(repeated once linux 128M "")
    define jobs linux 256M jobs= && start jobs && finish jobs
    show jobs
}
