//! Interrupt messages between the virtual CPUs of a partition, and from root.

use super::Partition;
use crate::memory::Memory;
use crate::vcpu::vlapic::Message;

impl Partition {
    /// Delivers a message from virtual CPU `sender`, or from outside if it is `None`. Returns the set of virtual
    /// CPUs that root has to wake or kick.
    pub fn deliver(&self, memory: &Memory, sender: Option<u8>, message: &Message) -> u64 {
        let address = |id: u8| {
            let address = self.vcpus.with(id.into(), crate::vcpu::Vcpu::address);
            address.unwrap_or_default()
        };
        let mut left = message.targets(sender, self.vcpus.present(), address);
        let mut kick = 0;
        while left != 0 {
            let id = left.trailing_zeros() as u8;
            left &= left - 1;
            let posted = self
                .vcpus
                .with(id.into(), |vcpu| vcpu.post(memory, message));
            // The sender looks by itself before it goes on.
            if posted == Some(true) && sender != Some(id) {
                kick |= 1 << id;
            }
        }
        kick
    }
}
