//! Facts of `/proc` about processes and the machine: `proc_pid_stat(5)`, `proc_meminfo(5)`,
//! `proc_stat(5)`.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use rustix::time::{ClockId, clock_gettime};

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    /// Time it used, user and system, all threads, in clock ticks.
    pub(crate) cpu_ticks: u64,
    /// When it began, in clock ticks since boot.
    pub(crate) start_time: u64,
}

/// Reads `/proc/PID/stat`.
///
/// # Errors
///
/// There is no such process.
pub(crate) fn process(pid: u32) -> io::Result<ProcessStat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_process(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_process(text: &str) -> Option<ProcessStat> {
    // The second field is a name in parentheses and can hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(ProcessStat {
        cpu_ticks: field(14)? + field(15)?,
        start_time: field(22)?,
    })
}

/// Resident bytes of a process that are its own: anonymous and file pages, not shared memory,
/// which holds the guest's RAM.
pub(crate) fn own_rss(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(kilobytes(&text, "RssAnon:")? + kilobytes(&text, "RssFile:")?)
}

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All that Linux manages.
    pub(crate) total: u64,
    /// Bytes that new work can have without swapping.
    pub(crate) available: u64,
}

/// Reads `/proc/meminfo`.
///
/// # Errors
///
/// `/proc` is not there.
pub(crate) fn memory() -> io::Result<Memory> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let get = |key| kilobytes(&text, key).ok_or(io::ErrorKind::InvalidData);
    Ok(Memory {
        total: get("MemTotal:")?,
        available: get("MemAvailable:")?,
    })
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number = line.trim().strip_suffix("kB")?.trim();
    number.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Ticks that all CPUs together were busy since boot.
pub(crate) fn busy_ticks() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    parse_busy(text.lines().next()?.strip_prefix("cpu ")?)
}

/// The same by CPU, for those that are online.
pub(crate) fn busy_ticks_by_cpu() -> BTreeMap<u64, u64> {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (cpu, rest) = line.strip_prefix("cpu")?.split_once(' ')?;
            Some((cpu.parse().ok()?, parse_busy(rest)?))
        })
        .collect()
}

fn parse_busy(fields: &str) -> Option<u64> {
    let fields: Vec<u64> = fields
        .split_ascii_whitespace()
        .map_while(|f| f.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq; the rest is counted in others, or stolen.
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

/// CPUs that Linux runs on.
pub(crate) fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// Milliseconds since boot, time asleep included.
pub(crate) fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Names this boot of the root partition.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_names_do_not_confuse() {
        let text = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0 1 0 777 0 0\n";
        let stat = parse_process(text).unwrap();
        assert_eq!((stat.cpu_ticks, stat.start_time), (42, 777));
        assert_eq!(parse_process("12 (a"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let me = process(std::process::id()).unwrap();
        assert!(me.start_time > 0);
        assert!(own_rss(std::process::id()).unwrap() > 4096);
        let memory = memory().unwrap();
        assert!(memory.available <= memory.total);
        assert!(busy_ticks().is_some() && boot_ms() > 0);
        let by_cpu: u64 = busy_ticks_by_cpu().values().sum();
        assert!(by_cpu > 0);
        assert_eq!(parse_busy(" 1 2 3 100 50 4 5 0 9 9"), Some(15));
    }
}
