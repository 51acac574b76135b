# Root's kernel maps the microvisor's memory when asked, but a read of it faults.
[ "$(nproc)" = 4 ] || { echo "nproc: $(nproc)"; exit 1; }
devmem 0x20000 32 >/dev/null || { echo "reserved low memory is not readable"; exit 1; }
devmem 0x200000 32 && { echo "the image is readable"; exit 1; }
dmesg | grep -q 'devmem.*general protection' || { echo "no #GP"; exit 1; }
