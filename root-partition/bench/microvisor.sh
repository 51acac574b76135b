# Runs the bench kernel as a guest, and prints its lines. $bench_rows are the rows that it measures.
. /lib/testing.sh
. ./symbols.sh
cat >bench.toml <<TOML
name = "bench"
vcpus = 1
memory = "512M"
kernel = "bench-kernel"
cmdline = "${bench_rows:+rows=$bench_rows}"
TOML
vmctl create bench.toml >/dev/null || fail "the guest is not defined"
begin_symbols
vmctl start bench >/dev/null || fail "the guest does not start"
[ -z "$bench_profile" ] || add_symbols "$(worker bench)"
# The guest ends by a triple fault.
vmctl wait bench --timeout 600s >/dev/null 2>&1
end_symbols
vmctl logs bench
