//! Interrupts and exceptions on their way into the guest.

use bitflags::bitflags;

use super::{Intercepts3, Vmcb};
use crate::arch::exit::Event;

bitflags! {
    /// The virtual interrupt: V_TPR in bits 7:0, V_INTR_PRIO in bits 19:16, V_INTR_VECTOR in bits 39:32.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::arch::svm) struct VirtualInterrupt: u64 {
        const TPR = 0xf;
        const IRQ = 1 << 8;
        const PRIORITY = 0xf << 16;
        const IGNORE_TPR = 1 << 20;
        const MASKING = 1 << 24;
        const VECTOR = 0xff << 32;
        const _ = !0;
    }

    /// EVENTINJ and EXITINTINFO: the vector in bits 7:0, the kind in bits 10:8, an error code in bits 63:32.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::arch::svm) struct EventInjection: u64 {
        const KIND = 7 << 8;
        const NMI = 2 << 8;
        const EXCEPTION = 3 << 8;
        const SOFTWARE = 4 << 8;
        const ERROR_CODE = 1 << 11;
        const VALID = 1 << 31;
        const _ = !0;
    }
}

impl VirtualInterrupt {
    /// The bits that request an interrupt.
    const REQUEST: Self = Self::IRQ
        .union(Self::PRIORITY)
        .union(Self::IGNORE_TPR)
        .union(Self::VECTOR);

    const fn of_class(class: u8) -> Self {
        Self::from_bits_retain((class as u64 & 0xf) << 16)
    }

    const fn of_vector(vector: u8) -> Self {
        Self::from_bits_retain((vector as u64) << 32)
    }
}

impl EventInjection {
    fn vector(self) -> u8 {
        self.bits() as u8
    }

    fn kind(self) -> Self {
        self.intersection(Self::KIND)
    }

    fn is_valid(self) -> bool {
        self.contains(Self::VALID)
    }

    /// Whether an instruction raised it: INT n, INT3 or INTO.
    fn is_software(self) -> bool {
        let kind = self.kind();
        kind == Self::SOFTWARE || (kind == Self::EXCEPTION && matches!(self.vector(), 3 | 4))
    }
}

impl Vmcb {
    /// CR8.
    pub(in crate::arch::svm) fn tpr(&self) -> u64 {
        let control = self.control.virtual_interrupt;
        control.intersection(VirtualInterrupt::TPR).bits()
    }

    /// Sets CR8.
    pub(in crate::arch::svm) fn set_tpr(&mut self, value: u64) {
        let control = &mut self.control.virtual_interrupt;
        control.remove(VirtualInterrupt::TPR);
        control.insert(VirtualInterrupt::from_bits_retain(value & 0xf));
    }

    /// Exits as soon as an interrupt of this priority class could be taken; of any class, if `None`. A
    /// virtual interrupt is requested, and its delivery intercepted (APM vol. 2 §15.21.4).
    ///
    /// Nothing changes while an interrupt is on its way: its end will be an exit.
    pub(in crate::arch::svm) fn open_window(&mut self, class: Option<u8>) {
        if self.has_interrupt() {
            return;
        }
        let request = match class {
            None => VirtualInterrupt::IGNORE_TPR,
            Some(class) => VirtualInterrupt::of_class(class),
        };
        self.request(VirtualInterrupt::IRQ.union(request));
        self.control.intercept_3.insert(Intercepts3::VINTR);
    }

    /// Clears the request for an interrupt window.
    pub(in crate::arch::svm) fn close_window(&mut self) {
        if self.has_window() {
            self.request(VirtualInterrupt::empty());
            self.control.intercept_3.remove(Intercepts3::VINTR);
        }
    }

    fn has_window(&self) -> bool {
        self.control.intercept_3.contains(Intercepts3::VINTR)
    }

    /// Whether a virtual interrupt is requested, to be delivered.
    fn has_interrupt(&self) -> bool {
        let control = self.control.virtual_interrupt;
        control.contains(VirtualInterrupt::IRQ) && !self.has_window()
    }

    fn request(&mut self, request: VirtualInterrupt) {
        let control = &mut self.control.virtual_interrupt;
        control.remove(VirtualInterrupt::REQUEST);
        control.insert(request);
    }

    /// Whether something is injected at the next entry.
    pub(in crate::arch::svm) fn has_event(&self) -> bool {
        self.control.event_injection.is_valid() || self.has_interrupt()
    }

    /// Clears what would be injected at the next entry.
    pub(in crate::arch::svm) fn forget_event(&mut self) {
        self.control.event_injection = EventInjection::empty();
        if self.has_interrupt() {
            self.request(VirtualInterrupt::empty());
        }
    }

    /// Injects again the event whose delivery the exit interrupted. Software interrupts and exceptions are
    /// not injected: the guest repeats their instruction.
    pub(in crate::arch::svm) fn keep_interrupted_event(&mut self) {
        let event = self.control.exit_interrupt_info;
        self.control.event_injection = EventInjection::empty();
        if !event.is_valid() || event.is_software() {
            return;
        }
        if event.kind().is_empty() {
            self.inject_interrupt(event.vector());
        } else {
            self.control.event_injection = event;
        }
    }

    /// Injects a virtual interrupt, which the CPU takes before the guest's next instruction, since the
    /// guest can take it. EVENTINJ would do the same, but QEMU's TCG may deliver an interrupt from
    /// there a second time, whatever RFLAGS.IF is by then.
    fn inject_interrupt(&mut self, vector: u8) {
        self.close_window();
        let request = VirtualInterrupt::IRQ.union(VirtualInterrupt::IGNORE_TPR);
        self.request(request.union(VirtualInterrupt::of_vector(vector)));
    }

    /// Injects an event at the next entry. The guest must be able to take an interrupt that is injected.
    pub(in crate::arch::svm) fn inject(&mut self, event: Event) {
        let (kind, vector, code) = match event {
            Event::Interrupt(vector) => return self.inject_interrupt(vector),
            Event::Nmi => (EventInjection::NMI, 2, None),
            Event::Exception(vector, code) => (EventInjection::EXCEPTION, vector, code),
        };
        let mut injection = EventInjection::VALID.union(kind);
        injection.insert(EventInjection::from_bits_retain(vector.into()));
        if let Some(code) = code {
            injection.insert(EventInjection::ERROR_CODE);
            injection.insert(EventInjection::from_bits_retain(u64::from(code) << 32));
        }
        self.control.event_injection = injection;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERRUPT: EventInjection = EventInjection::VALID;

    fn event(kind: EventInjection, vector: u8) -> EventInjection {
        EventInjection::VALID
            .union(kind)
            .union(EventInjection::from_bits_retain(vector.into()))
    }

    /// The CPU has taken the virtual interrupt.
    fn deliver(vmcb: &mut Vmcb) {
        vmcb.control.virtual_interrupt.remove(VirtualInterrupt::IRQ);
    }

    #[test]
    fn an_interrupt_is_on_its_way_until_the_cpu_takes_it() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.set_tpr(5);
        vmcb.open_window(None);
        assert!(!vmcb.has_event(), "a window is no event");
        vmcb.inject(Event::Interrupt(0x41));
        assert!(vmcb.has_event() && !vmcb.has_window());
        assert_eq!(vmcb.control.virtual_interrupt.bits(), 0x41_0010_0105);
        // An exit before the first instruction.
        vmcb.keep_interrupted_event();
        vmcb.open_window(None);
        vmcb.close_window();
        assert!(vmcb.has_event() && !vmcb.has_window());
        assert_eq!(vmcb.control.virtual_interrupt.bits() >> 32, 0x41);
        deliver(&mut vmcb);
        vmcb.keep_interrupted_event();
        assert!(!vmcb.has_event());
        vmcb.open_window(Some(7));
        assert!(vmcb.has_window());
        assert_eq!(vmcb.control.virtual_interrupt.bits(), 0x7_0105);
        assert_eq!(vmcb.tpr(), 5);
    }

    #[test]
    fn an_interrupted_delivery_is_begun_again() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.control.exit_interrupt_info = event(INTERRUPT, 0x41);
        vmcb.keep_interrupted_event();
        assert_eq!(vmcb.control.event_injection.bits(), 0);
        assert_eq!(vmcb.control.virtual_interrupt.bits(), 0x41_0010_0100);
        vmcb.forget_event();
        assert!(!vmcb.has_event());

        let page_fault = event(EventInjection::EXCEPTION, 14).union(EventInjection::ERROR_CODE);
        vmcb.control.exit_interrupt_info = page_fault;
        vmcb.keep_interrupted_event();
        assert_eq!(vmcb.control.event_injection, page_fault);
        for software in [
            event(EventInjection::SOFTWARE, 0x80),
            event(EventInjection::EXCEPTION, 3),
        ] {
            vmcb.control.exit_interrupt_info = software;
            vmcb.keep_interrupted_event();
            assert!(!vmcb.has_event(), "the guest repeats it");
        }
    }

    #[test]
    fn events_have_the_manuals_form() {
        // APM vol. 2 §15.20.
        let mut vmcb = Vmcb::zeroed();
        for (event, expected) in [
            (Event::Nmi, 0x8000_0202),
            (Event::Exception(6, None), 0x8000_0306),
            (Event::Exception(13, Some(0x18)), 0x18_8000_0b0d),
        ] {
            vmcb.inject(event);
            assert_eq!(vmcb.control.event_injection.bits(), expected);
        }
    }
}
