//! Guests that count aloud, so that a moment lost or lived twice is heard.

use cocoon::vm::spec::VmSpec;

use super::Lab;
use super::console::Console;
use super::vm::Vm;

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ticker {
    /// A shell of Linux.
    Shell,
    /// Our own payload.
    Payload,
    /// The same, its memory in pages of the host's pool.
    Huge,
}

impl Ticker {
    /// A VM of it.
    pub(crate) fn spec(self, lab: &Lab) -> VmSpec {
        match self {
            Self::Shell => lab.guest(1),
            Self::Payload => lab.payload(),
            Self::Huge => {
                let mut spec = lab.payload();
                spec.memory.hugepages = true;
                spec
            }
        }
    }

    /// Boots such a VM, which counts from then on.
    pub(crate) fn boot(self, lab: &Lab, spec: VmSpec) -> Vm {
        let mut vm = lab.boot(spec);
        if self == Self::Shell {
            vm.console.until("GUEST UP");
            count(&mut vm.console, "");
        }
        vm
    }
}

/// Has the guest's shell count until it is interrupted, and run `also` with each `$i`.
pub(crate) fn count(console: &mut Console, also: &str) {
    console.enter(&format!(
        "i=0; while :; do i=$((i+1)); {also} printf 'T%08x\\n' $i; sleep 0.02; done"
    ));
}

/// The ticks of one guest, heard in pieces.
#[derive(Debug, Default)]
pub(crate) struct Ticks {
    unfinished: String,
    last: Option<u32>,
    count: u32,
}

impl Ticks {
    /// Takes what was heard next; each tick must follow the last one.
    pub(crate) fn hear(&mut self, said: &str) {
        self.unfinished.push_str(said);
        while let Some(at) = self.unfinished.find(['T', 'X']) {
            let Some(digits) = self.unfinished.get(at + 1..at + 9) else {
                return;
            };
            let Ok(tick) = u32::from_str_radix(digits, 16) else {
                self.unfinished.drain(..=at);
                continue;
            };
            let differ = self.unfinished[at..].starts_with('X');
            assert!(!differ, "the guest's register and memory differ: {tick:x}");
            let expected = self.last.map_or(tick, |last| last + 1);
            assert_eq!(tick, expected, "in {:?}", self.unfinished);
            self.last = Some(tick);
            self.count += 1;
            self.unfinished.drain(..at + 9);
        }
    }

    /// Listens for `count` more; returns all that was heard.
    pub(crate) fn listen(&mut self, console: &mut Console, count: u32) -> String {
        let mut all = String::new();
        let until = self.count + count;
        while self.count < until {
            let more = console.more();
            self.hear(&more);
            all.push_str(&more);
        }
        all
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The last one.
    pub(crate) fn last(&self) -> Option<u32> {
        self.last
    }
}
