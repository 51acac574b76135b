//! Interrupts and exceptions on their way into the guest.

use super::*;
use crate::arch::hw::Event;

const INTERCEPT_WINDOW: u32 = 1 << 4;
const V_IRQ: u64 = 1 << 8;
const V_PRIORITY_SHIFT: u32 = 16;
const V_IGNORE_TPR: u64 = 1 << 20;
const V_VECTOR_SHIFT: u32 = 32;
const V_REQUEST: u64 = V_IRQ | 0xf << V_PRIORITY_SHIFT | V_IGNORE_TPR | 0xff << V_VECTOR_SHIFT;
const SHADOW: u64 = 1;

const EVENT_VALID: u64 = 1 << 31;
const EVENT_ERROR_CODE: u64 = 1 << 11;
const EVENT_KIND: u64 = 7 << 8;
const EVENT_INTERRUPT: u64 = 0 << 8;
const EVENT_NMI: u64 = 2 << 8;
const EVENT_EXCEPTION: u64 = 3 << 8;
const EVENT_SOFTWARE: u64 = 4 << 8;

impl Vmcb {
    pub(in crate::arch::svm) fn interrupt_shadow(&self) -> bool {
        self.get(INTERRUPT_SHADOW) & SHADOW != 0
    }

    pub(in crate::arch::svm) fn set_interrupt_shadow(&mut self, on: bool) {
        let rest = self.get(INTERRUPT_SHADOW) & !SHADOW;
        self.set(INTERRUPT_SHADOW, if on { rest | SHADOW } else { rest });
    }

    /// CR8.
    pub(crate) fn virtual_tpr(&self) -> u8 {
        (self.get(VIRTUAL_INTERRUPT) & 0xf) as u8
    }

    pub(crate) fn set_virtual_tpr(&mut self, value: u8) {
        let rest = self.get(VIRTUAL_INTERRUPT) & !0xf;
        self.set(VIRTUAL_INTERRUPT, rest | u64::from(value & 0xf));
    }

    /// Exits as soon as an interrupt of this priority class could be taken; of any, if `None`. A
    /// virtual interrupt is requested, and its delivery intercepted (APM vol. 2 §15.21.4).
    ///
    /// Not while an interrupt is on its way: its end will be an exit.
    pub(crate) fn ask_for_window(&mut self, class: Option<u8>) {
        if self.has_interrupt() {
            return;
        }
        self.request(match class {
            None => V_IRQ | V_IGNORE_TPR,
            Some(class) => V_IRQ | u64::from(class & 0xf) << V_PRIORITY_SHIFT,
        });
        self.intercept_3(INTERCEPT_WINDOW, true);
    }

    /// No longer.
    pub(crate) fn forget_window(&mut self) {
        if self.has_window() {
            self.request(0);
            self.intercept_3(INTERCEPT_WINDOW, false);
        }
    }

    fn has_window(&self) -> bool {
        self.get_u32(INTERCEPTS_3) & INTERCEPT_WINDOW != 0
    }

    /// Whether a virtual interrupt is requested, to be delivered.
    fn has_interrupt(&self) -> bool {
        self.get(VIRTUAL_INTERRUPT) & V_IRQ != 0 && !self.has_window()
    }

    fn request(&mut self, request: u64) {
        let rest = self.get(VIRTUAL_INTERRUPT) & !V_REQUEST;
        self.set(VIRTUAL_INTERRUPT, rest | request);
    }

    /// Whether something is injected at the next entry.
    pub(in crate::arch::svm) fn has_event(&self) -> bool {
        self.get(EVENT_INJECTION) & EVENT_VALID != 0 || self.has_interrupt()
    }

    /// Injects nothing.
    pub(in crate::arch::svm) fn forget_event(&mut self) {
        self.set(EVENT_INJECTION, 0);
        if self.has_interrupt() {
            self.request(0);
        }
    }

    /// An exit that interrupted the delivery of an event has it injected again. Software
    /// interrupts and exceptions are not: the guest repeats their instruction.
    pub(in crate::arch::svm) fn keep_interrupted_event(&mut self) {
        let event = self.get(INTERRUPTED_EVENT);
        let software = match event & EVENT_KIND {
            EVENT_SOFTWARE => true,
            EVENT_EXCEPTION => matches!(event & 0xff, 3 | 4),
            _ => false,
        };
        let again = event & EVENT_VALID != 0 && !software;
        if again && event & EVENT_KIND == EVENT_INTERRUPT {
            self.set(EVENT_INJECTION, 0);
            self.inject_interrupt(event as u8);
        } else {
            self.set(EVENT_INJECTION, if again { event } else { 0 });
        }
    }

    /// As a virtual interrupt, which the CPU takes before the guest's next instruction, since the
    /// guest can take it. EVENTINJ would do the same, but QEMU's TCG may deliver an interrupt from
    /// there a second time, whatever RFLAGS.IF is by then.
    fn inject_interrupt(&mut self, vector: u8) {
        self.forget_window();
        self.request(V_IRQ | V_IGNORE_TPR | u64::from(vector) << V_VECTOR_SHIFT);
    }

    /// Injects an event at the next entry. An interrupt: the guest must be able to take it.
    pub fn inject(&mut self, event: Event) {
        let event = match event {
            Event::Interrupt(vector) => return self.inject_interrupt(vector),
            Event::Nmi => EVENT_NMI | 2,
            Event::Exception(vector, None) => EVENT_EXCEPTION | u64::from(vector),
            Event::Exception(vector, Some(code)) => {
                u64::from(code) << 32 | EVENT_ERROR_CODE | EVENT_EXCEPTION | u64::from(vector)
            }
        };
        self.set(EVENT_INJECTION, EVENT_VALID | event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPU has taken the virtual interrupt.
    fn deliver(vmcb: &mut Vmcb) {
        let control = vmcb.get(VIRTUAL_INTERRUPT);
        vmcb.set(VIRTUAL_INTERRUPT, control & !V_IRQ);
    }

    #[test]
    fn an_interrupt_is_on_its_way_until_the_cpu_takes_it() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.set_virtual_tpr(5);
        vmcb.ask_for_window(None);
        assert!(!vmcb.has_event(), "a window is no event");
        vmcb.inject(Event::Interrupt(0x41));
        assert!(vmcb.has_event() && !vmcb.has_window());
        assert_eq!(vmcb.get(VIRTUAL_INTERRUPT), 0x41_0010_0105);
        // An exit before the first instruction.
        vmcb.keep_interrupted_event();
        vmcb.ask_for_window(None);
        vmcb.forget_window();
        assert!(vmcb.has_event() && !vmcb.has_window());
        assert_eq!(vmcb.get(VIRTUAL_INTERRUPT) >> V_VECTOR_SHIFT, 0x41);
        deliver(&mut vmcb);
        vmcb.keep_interrupted_event();
        assert!(!vmcb.has_event());
        vmcb.ask_for_window(None);
        assert!(vmcb.has_window());
    }

    #[test]
    fn an_interrupted_delivery_is_begun_again() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.set(INTERRUPTED_EVENT, EVENT_VALID | EVENT_INTERRUPT | 0x41);
        vmcb.keep_interrupted_event();
        assert_eq!(vmcb.get(EVENT_INJECTION), 0);
        assert_eq!(vmcb.get(VIRTUAL_INTERRUPT), 0x41_0010_0100);
        vmcb.forget_event();
        assert!(!vmcb.has_event());

        let page_fault = EVENT_VALID | EVENT_ERROR_CODE | EVENT_EXCEPTION | 14;
        vmcb.set(INTERRUPTED_EVENT, page_fault);
        vmcb.keep_interrupted_event();
        assert_eq!(vmcb.get(EVENT_INJECTION), page_fault);
        vmcb.set(INTERRUPTED_EVENT, EVENT_VALID | EVENT_SOFTWARE | 0x80);
        vmcb.keep_interrupted_event();
        assert!(!vmcb.has_event(), "the guest repeats it");
    }
}
