# Runs the bench kernel as a guest, and prints its lines.
. /lib/testing.sh
cat >bench.toml <<'TOML'
name = "bench"
vcpus = 1
memory = "512M"
kernel = "bench-kernel"
TOML
vmctl create bench.toml >/dev/null || fail "the guest is not defined"
vmctl start bench >/dev/null || fail "the guest does not start"
# The guest ends by a triple fault.
vmctl wait bench --timeout 600s >/dev/null 2>&1
vmctl logs bench
