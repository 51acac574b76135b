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
