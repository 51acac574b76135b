//! The command line.

use crate::memory;

/// The longest command line that is looked at.
const LENGTH: usize = 255;

/// The number after `name` on the command line that the Linux boot protocol's parameters point to.
pub fn number(boot_params: u64, name: &str) -> Option<u64> {
    const COMMAND_LINE: u64 = 0x228;
    let start = u64::from(memory::read::<u32>(boot_params + COMMAND_LINE));
    let mut line = [0; LENGTH];
    if start != 0 {
        for (byte, at) in line.iter_mut().zip(start..) {
            *byte = memory::read(at);
            if *byte == 0 {
                break;
            }
        }
    }
    let line = line.split(|byte| *byte == 0).next()?;
    let mut words = line.split(|byte| *byte == b' ');
    let digits = words.find_map(|word| word.strip_prefix(name.as_bytes()))?;
    core::str::from_utf8(digits).ok()?.parse().ok()
}
