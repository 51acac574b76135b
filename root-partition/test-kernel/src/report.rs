//! Cases, what makes one fail, and the line that each prints.

use core::fmt::{self, Debug, Write};
use core::panic::Location;

use spin::Mutex;

use crate::console;
use crate::hv;

/// A test case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it says that holds.
    pub name: &'static str,
    /// Tries it.
    pub run: fn() -> Outcome,
}

/// Defines `CASES` from the names of functions.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// The cases of this module.
        pub(crate) const CASES: &[$crate::report::Case] = &[
            $( $crate::report::Case { name: stringify!($name), run: $name } ),*
        ];
    };
}
pub(crate) use cases;

/// What a case, or a step of one, comes to.
pub type Outcome<T = ()> = Result<T, Why>;

/// Where a case failed. What it says of the reason is the last one given: there is one case at a
/// time, and an error that carries its text is too large to hand on.
#[derive(Clone, Copy, Debug)]
pub struct Why {
    place: &'static Location<'static>,
}

static REASON: Mutex<Reason> = Mutex::new(Reason {
    text: [0; 400],
    len: 0,
});

struct Reason {
    text: [u8; 400],
    len: usize,
}

impl Write for Reason {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let end = self.len + character.len_utf8();
            let room = self.text.get_mut(self.len..end).ok_or(fmt::Error)?;
            character.encode_utf8(room);
            self.len = end;
        }
        Ok(())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = REASON.lock();
        let text = reason.text.get(..reason.len).unwrap_or_default();
        let text = core::str::from_utf8(text).unwrap_or_default();
        write!(f, "{text} ({}:{})", self.place.file(), self.place.line())
    }
}

/// Fails.
#[track_caller]
pub fn fail<T>(reason: fmt::Arguments<'_>) -> Outcome<T> {
    let mut text = REASON.lock();
    text.len = 0;
    // A reason that is too long is cut.
    let _ = text.write_fmt(reason);
    Err(Why {
        place: Location::caller(),
    })
}

/// Fails if `got` is not `expected`.
#[track_caller]
pub fn equal<T: PartialEq + Debug>(what: &str, got: T, expected: T) -> Outcome {
    if got == expected {
        return Ok(());
    }
    fail(format_args!("{what}: {got:x?}, not {expected:x?}"))
}

/// Fails if `holds` is false.
#[track_caller]
pub fn ensure(what: &str, holds: bool) -> Outcome {
    if holds {
        return Ok(());
    }
    fail(format_args!("not so: {what}"))
}

/// The check of all nested maps after a group's cases.
const VERIFY: Case = Case {
    name: "the_nested_maps_are_right",
    run: || hv::verify().map(|_| ()),
};

/// Runs the cases of one group and prints a line for each; whether all are well.
///
/// Each case leaves the machine as it was: no partition, no frame given away. After them the nested maps
/// are checked.
pub fn run(group: &str, cases: &[Case]) -> bool {
    let mut well = true;
    for case in cases.iter().chain([&VERIFY]) {
        match (case.run)().and_then(|()| nothing_left()) {
            Ok(()) => console::line(format_args!("ok - {group}::{}", case.name)),
            Err(why) => {
                console::line(format_args!("not ok - {group}::{}: {why}", case.name));
                well = false;
                hv::destroy_all();
            }
        }
    }
    well
}

fn nothing_left() -> Outcome {
    let info = hv::machine_info()?;
    equal("partitions left", info.partitions, 1)?;
    equal("frames still deposited", info.deposited_frames, 0)?;
    equal("frames still a guest's", info.guest_frames, 0)
}
