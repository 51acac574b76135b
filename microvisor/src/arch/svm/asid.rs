//! Address space identifiers of one CPU (APM vol. 2 §15.16).
//!
//! A virtual CPU has an identifier on the CPU where it last ran. A fresh identifier is a flush: no entry of the TLB
//! has it. When the identifiers run out, the whole TLB is flushed and a new generation begins.

/// Identifiers that this CPU hands out. 0 is the host's, 1 root's.
#[derive(Debug)]
pub(super) struct Asids {
    next: u32,
    end: u32,
    generation: u64,
}

/// An identifier, and the conditions under which it is valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asid {
    cpu: usize,
    generation: u64,
    flush: u64,
    pub(super) number: u32,
}

const FIRST: u32 = 2;

impl Asids {
    /// Makes the identifiers of a CPU that has `count`.
    pub(super) const fn new(count: u32) -> Self {
        Self {
            next: FIRST,
            // A CPU with fewer flushes each time.
            end: if count > FIRST { count } else { FIRST + 1 },
            generation: 1,
        }
    }

    /// Returns whether `asid` can be used on CPU `cpu` for generation `flush` of a nested map.
    pub(super) fn is_valid(&self, asid: &Asid, cpu: usize, flush: u64) -> bool {
        asid.cpu == cpu && asid.generation == self.generation && asid.flush == flush
    }

    /// Returns a fresh identifier, and whether the whole TLB must be flushed with it.
    pub(super) fn take(&mut self, cpu: usize, flush: u64) -> (Asid, bool) {
        let wrapped = self.next == self.end;
        if wrapped {
            self.generation += 1;
            self.next = FIRST;
        }
        let asid = Asid {
            cpu,
            generation: self.generation,
            flush,
            number: self.next,
        };
        self.next += 1;
        (asid, wrapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_used_again_only_after_a_flush() {
        let mut asids = Asids::new(4);
        let (a, flush_a) = asids.take(0, 1);
        let (b, flush_b) = asids.take(0, 1);
        assert_eq!((a.number, flush_a, b.number, flush_b), (2, false, 3, false));
        assert!(asids.is_valid(&a, 0, 1));
        let (c, flush_c) = asids.take(0, 1);
        assert_eq!((c.number, flush_c), (2, true));
        assert!(
            !asids.is_valid(&a, 0, 1),
            "the same number, before the flush"
        );
        assert!(!asids.is_valid(&b, 0, 1));
        assert!(asids.is_valid(&c, 0, 1));
    }

    #[test]
    fn another_cpu_or_a_changed_map_needs_a_fresh_one() {
        let mut asids = Asids::new(16);
        let (a, _) = asids.take(0, 1);
        assert!(!asids.is_valid(&a, 1, 1));
        assert!(!asids.is_valid(&a, 0, 2));
        assert!(!asids.is_valid(&Asid::default(), 0, 0), "never had one");
    }

    #[test]
    fn a_cpu_with_too_few_flushes_each_time() {
        let mut asids = Asids::new(2);
        let _ = asids.take(0, 1);
        assert!(asids.take(0, 1).1);
        assert!(asids.take(0, 1).1);
    }
}
