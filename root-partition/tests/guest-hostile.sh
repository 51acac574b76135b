# A guest does to the devices of its own worker whatever a broken or hostile driver may do. Its worker lives, says in its log
# what the guest did, and serves it again after a reset; another guest and the root partition notice nothing.
# timeout: 900
# long: yes
. /lib/testing.sh
yes "data of the disk" | head -c 1048576 >disk.raw
# The guest reads this script from its second disk. It uses memory that its kernel leaves alone.
cat >script.raw <<'END'
dev=0000:00:01.0 bar=0xc0010000 ram=$((0xc800000))
table=$ram avail=$((ram + 0x1000)) used=$((ram + 0x2000)) head=$((ram + 0x3000)) data=$((ram + 0x4000)) state=$((ram + 0x5000))
reg() { devmem $((bar + $1)) $2 $3; }
config() { printf "$2" | dd of=/sys/bus/pci/devices/$dev/config bs=1 seek=$1 conv=notrunc 2>/dev/null; }
# Stock kernels have no /dev/port: by the PCI configuration access capability, one byte to BAR 1.
kick() { config 136 '\001'; config 140 '\000\000\000\000\001\000\000\000'; config 148 '\000'; }
# desc INDEX ADDRESS LENGTH FLAGS NEXT
desc() { devmem $((table + 16 * $1)) 64 $2; devmem $((table + 16 * $1 + 8)) 64 $(($3 | $4 << 32 | $5 << 48)); }
status() { devmem $((bar + 0x14)) 8; }
wait_for() { for _ in $(seq 100); do [ $(($(status) & $1)) = $2 ] && return; usleep 20000; done; echo "bad status $(status) of $what"; }
reset() { reg 0x14 8 0; wait_for 0xff 0; for at in 0 2 4; do devmem $((avail + at)) 16 0; devmem $((used + at)) 16 0; done; sent=0; }
# up TABLE AVAIL USED: the device with its first queue.
up() {
    reset
    reg 0x14 8 3
    reg 0x08 32 1; reg 0x0c 32 0x101; reg 0x08 32 0; reg 0x0c 32 0
    reg 0x14 8 11
    reg 0x16 16 0; reg 0x18 16 16
    reg 0x20 64 $1; reg 0x28 64 $2; reg 0x30 64 $3
    reg 0x1c 16 1
    reg 0x14 8 15
}
good_up() { up $table $avail $used; }
# send HEAD [COUNT]
send() { devmem $((avail + 4 + 2 * sent)) 16 $1; sent=$((sent + ${2:-1})); devmem $((avail + 2)) 16 $((sent & 0xffff)); kick; }
# header TYPE SECTOR
header() { devmem $head 64 $1; devmem $((head + 8)) 64 $2; devmem $state 8 0xee; }
chain() { desc 0 $head 16 1 1; desc 1 $data 512 3 2; desc 2 $state 1 2 0; }
answered() { for _ in $(seq 100); do [ $(devmem $((used + 2)) 16) = 0x000$sent ] && return; usleep 20000; done; echo "bad: no answer after $what"; }
# After a reset the device serves as before.
good() {
    good_up; header 0 0; chain; send 0; answered
    [ "$(devmem $data 32) $(devmem $state 8)" = "0x61746164 0x00" ] || echo "bad answer after $what: $(devmem $data 32) $(devmem $state 8)"
}
# breaks NAME: what was sent breaks the device until a reset.
breaks() { what=$1; wait_for 0x40 64; good; echo "$1 done"; }
# fails NAME STATUS: what was sent is answered by this status.
fails() { what=$1; answered; [ $(devmem $state 8) = $2 ] || echo "bad status of $1: $(devmem $state 8)"; good; echo "$1 done"; }

echo $dev >/sys/bus/pci/drivers/virtio-pci/unbind
what=start; good
good_up; header 0 0; chain; desc 1 $data 512 3 0; send 0; breaks loop
good_up; send 200; breaks range
good_up; header 0 0; chain; send 0 100; breaks runaway
good_up; header 0 0; chain; desc 0 0xffffffffff000 16 1 1; send 0; breaks outside
good_up; header 0 0; chain; desc 1 $data 0xffffffff 3 2; send 0; breaks huge
good_up; header 0 0; chain; desc 1 0xc0010000 512 3 2; send 0; breaks mmio
good_up; header 0 0; chain; desc 0 $head 16 3 1; send 0; breaks writeonly
good_up; header 0 0; chain; desc 2 $state 1 0 0; send 0; breaks readonly
good_up; header 0 0; desc 0 $head 8 1 2; desc 2 $state 1 2 0; send 0; breaks short
good_up; header 0 0; desc 0 $head 16 0 0; send 0; breaks statusless
good_up; header 0 0; chain; desc 0 $head 16 4 0; send 0; breaks indirect
good_up; header 0 0; chain; desc 1 $data 0 3 2; send 0; fails zero 0x00
good_up; header 0 0; chain; desc 1 $data 100 3 2; send 0; fails odd 0x01
good_up; header 0 2048; chain; send 0; fails end 0x01
good_up; header 0 0x7fffffffffffff; chain; send 0; fails beyond 0x01
good_up; header 1 2047; desc 0 $head 16 1 1; desc 1 $data 1024 1 2; desc 2 $state 1 2 0; send 0; fails across 0x01
good_up; header 77 0; chain; send 0; fails unknown 0x02
for area in 0xc0010000 0xfee00000 0xe0008000 0xffffffffffff0000 0x100000008 7; do
    up $area $avail $used; breaks table-$area
    up $table $area $used; breaks avail-$area
    up $table $avail $area; breaks used-$area
done
# The queue changes while it is served.
what=live; good_up
reg 0x18 16 8; reg 0x20 64 0xc0010000; reg 0x28 64 7; reg 0x1c 16 0; reg 0x08 32 7; reg 0x0c 32 0xffffffff
header 0 0; chain; send 0; answered
reg 0x3a 16 1; reg 0x3a 16 1; reg 0x1c 16 1; reg 0x14 8 255; reg 0x14 8 0; reg 0x14 8 15; kick
good; echo live done
# Registers of every size at every offset.
what=registers
for width in 8 16 32 64; do
    for at in $(seq 0 $((width / 8)) 63) 4096 8192 8193 8200 8256 12288 12292 16384 20480 32760; do
        devmem $((bar + at)) $width >/dev/null
        [ $at = 20 ] || devmem $((bar + at)) $width $((0xffffffffffffffff >> (64 - width)))
    done
done
for at in 0 4 8 12 16 20 60 64 68 84 104 128 144 148 252 255; do
    config $at '\377\377\377\377'
done
config 16 '\000\000\001\300\001\301\000\000'
config 4 '\007\000'
good; echo registers done
# The stock driver takes the device as it was left.
good_up; send 200; wait_for 0x40 64
echo $dev >/sys/bus/pci/drivers/virtio-pci/bind
for _ in $(seq 100); do [ -e /dev/vda ] && break; usleep 100000; done
[ "$(head -n 1 /dev/vda)" = "data of the disk" ] && echo stock done
echo all over
END
truncate -s 65536 script.raw
{
    cat demo.toml
    printf '[[disk]]\npath = "disk.raw"\n[[disk]]\npath = "script.raw"\n'
} >hostile.toml
up witness
expect "demo: defined" vmctl create hostile.toml --set cmdline="console=ttyS0 quiet mem=200M iomem=relaxed"
start demo
tell demo "tr -d '\\000' </dev/vdb >/tmp/script; sh /tmp/script"
eventually 400 printed demo '^all over.$'
printed demo '^bad' && fail "$(vmctl logs demo | grep '^bad')"
cases=$(count demo '^[a-z0-9-]* done.$')
[ "$cases" = 38 ] || fail "$cases cases instead of 38"
printed demo '^stock done.$' || fail "the stock driver does not find the disk"
answer witness "here" 'echo he""re'
is demo running
lines=$(vmctl logs demo --worker | grep -c "guest:")
[ "$lines" -ge 30 ] && [ "$lines" -le 80 ] || fail "$lines lines about the guest"
vmctl logs demo --worker | grep "guest: disk: queue 0: a descriptor points outside of memory" >/dev/null || fail "$(vmctl logs demo --worker)"
vmctl hv-log | grep -i "panic\|error" && fail "the microvisor has seen something"
expect "agree" vmctl verify
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
expect "data of the disk" head -n 1 disk.raw
