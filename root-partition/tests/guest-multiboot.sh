# A Multiboot kernel as a guest: the microvisor itself, which finds no SVM there and says so.
# microvisor: microvisor
# timeout: 600
. /lib/testing.sh
sed 's/^kernel.*/kernel = "microvisor"/; /^initrd/d; /^cmdline/d; s/256M/1G/' demo.toml >multiboot.toml
expect "demo: defined" vmctl create multiboot.toml
expect "demo: running" vmctl start demo --wait
eventually 60 printed demo 'cannot start: this CPU has no SVM'
expect killed vmctl kill demo
# QEMU's firmware configuration device: its signature, and the fast reset.
kernel_of facts '\146\272\020\005\061\300\146\357\271\004\000\000\000\146\272\021\005\354\146\272\370\003\356\342\364\344\222\014\001\346\222\364\353\375'
expect defined vmctl create facts.toml --set on_reboot=stop
expect started vmctl start facts
expect "facts: stopped (guest rebooted)" vmctl wait facts --timeout 60s
printed facts QEMU || fail "$(vmctl logs facts)"
# A vector register from a device's memory, the version of the I/O APIC; the kernel powers off when it is right.
kernel_of moves '\017\040\340\015\000\002\000\000\017\042\340\307\005\000\000\300\376\001\000\000\000\017\020\035\020\000\300\376\146\017\176\330\075\040\000\027\000\165\376\146\272\000\006\146\270\000\064\146\357\364\353\375'
expect defined vmctl create moves.toml
expect started vmctl start moves
expect "moves: stopped (guest powered off)" vmctl wait moves --timeout 60s
