//! Requests, service and ends against sets of vectors.

use std::collections::BTreeSet;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Post(u8, bool),
    Merge(Vec<(u8, bool)>),
    Accept,
    Eoi,
    Task(u8),
    Enable(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (any::<u8>(), any::<bool>()).prop_map(|(vector, level)| Op::Post(vector, level)),
        2 => proptest::collection::vec((any::<u8>(), any::<bool>()), 0..5).prop_map(Op::Merge),
        4 => Just(Op::Accept),
        4 => Just(Op::Eoi),
        1 => any::<u8>().prop_map(Op::Task),
        1 => any::<bool>().prop_map(Op::Enable),
    ]
}

#[derive(Default)]
struct Model {
    requested: BTreeSet<u8>,
    in_service: BTreeSet<u8>,
    level: BTreeSet<u8>,
    task: u8,
    enabled: bool,
}

impl Model {
    fn post(&mut self, vector: u8, level: bool) {
        if self.enabled && vector >= 16 {
            self.requested.insert(vector);
            if level {
                self.level.insert(vector);
            } else {
                self.level.remove(&vector);
            }
        }
    }

    fn next(&self) -> Option<u8> {
        let serving = self.in_service.last().copied().unwrap_or(0);
        let barrier = (self.task >> 4).max(serving >> 4);
        self.requested
            .last()
            .copied()
            .filter(|vector| vector >> 4 > barrier)
    }
}

proptest! {
    #[test]
    fn behaves_as_sets_do(ops in proptest::collection::vec(op(), 0..200)) {
        let mut apic = x2apic(0);
        let mut model = Model { enabled: true, ..Model::default() };
        for op in ops {
            match op {
                Op::Post(vector, level) => {
                    apic.post(vector, level);
                    model.post(vector, level);
                }
                Op::Merge(list) => {
                    let mut posted = Posted::default();
                    for (vector, level) in list {
                        let (word, bit) = (usize::from(vector >> 6), 1 << (vector & 63));
                        posted.pending[word] |= bit;
                        posted.level[word] = posted.level[word] & !bit | if level { bit } else { 0 };
                        model.post(vector, level);
                    }
                    apic.merge(&posted);
                }
                Op::Accept => {
                    prop_assert_eq!(apic.next_interrupt(), model.next());
                    if let Some(vector) = model.next() {
                        apic.accept(vector);
                        model.requested.remove(&vector);
                        model.in_service.insert(vector);
                    }
                }
                Op::Eoi => {
                    let expected = match model.in_service.pop_last() {
                        Some(vector) if model.level.contains(&vector) => Effect::LevelEoi(vector),
                        _ => Effect::None,
                    };
                    prop_assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(expected));
                }
                Op::Task(value) => {
                    prop_assert_eq!(apic.write_msr(0x808, value.into(), 0), Ok(Effect::None));
                    model.task = value;
                }
                Op::Enable(on) => {
                    let value = if on { 0x1ff } else { 0xff };
                    prop_assert_eq!(apic.write_msr(0x80f, value, 0), Ok(Effect::Address));
                    model.enabled = on;
                }
            }
            prop_assert_eq!(apic.next_interrupt(), model.next());
            prop_assert_eq!(apic.highest_request(), model.requested.last().copied());
        }
    }
}
