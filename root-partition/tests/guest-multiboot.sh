# A Multiboot kernel as a guest: the microvisor itself, which finds no SVM there and says so.
# microvisor: microvisor
# timeout: 600
. /lib/testing.sh
sed 's/^kernel.*/kernel = "microvisor"/; /^initrd/d; /^cmdline/d; s/256M/1G/' demo.toml >multiboot.toml
expect "demo: defined" vmctl create multiboot.toml
expect "demo: running" vmctl start demo --wait
eventually 60 printed demo 'cannot start: this CPU has no SVM'
expect killed vmctl kill demo
