//! What a VM out of a snapshot has more of than was saved.
//!
//! ```text
//! --cpu --memory --storage ──decide──▶ Sizes ──▶ record, spec's `added`, length of the disk's file
//!      not less than was saved                       │ engine: plugged in, while the guest runs
//!      not more than its boot left room for          ▼
//!                                      agent: switched on, online, file system grown
//! ```
//! Invariant: what a saved VM cannot become is refused by [`Saved::decide`], from values alone; nothing
//! has been made then.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cocoon_agent::protocol::Grown;

use super::identity::Introduced;
use super::{Error, Host, exec, specify};
use crate::agent::Agent;
use crate::snapshot::Manifest;
use crate::sys::hugepages;
use crate::sys::interrupt::Interrupt;
use crate::units::ByteSize;
use crate::vm::VmConfig;
use crate::vm::spec::{Cpus, MEMORY_BLOCK, Memory};

/// From this much memory on, 1 GiB below the 64 GiB of Linux (`MEM_SIZE_FOR_LARGE_BLOCK`: it counts the
/// hole below 4 GiB too), a guest takes memory only in [`LARGE_BLOCK`]s.
const LARGE_MEMORY: ByteSize = ByteSize::from_gib(63);

/// The largest of a large guest's blocks (`MAX_BLOCK_SIZE`); where its blocks are smaller, they divide it.
const LARGE_BLOCK: ByteSize = ByteSize::from_gib(2);

/// How long a guest may take to notice what was plugged in: an emulated one needs a second or two.
const GRACE: Duration = Duration::from_secs(20);

/// Between two looks at whether it has: nothing tells when.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long the agent may take to answer: it did a moment ago.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a sector of a virtio disk.
const SECTOR: u64 = 512;

/// What the user asks for; of what is not said the VM has as much as it has.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each field is that of VmConfig")]
pub struct Wanted {
    pub cpu: Option<u32>,
    pub memory: Option<ByteSize>,
    pub storage: Option<ByteSize>,
    pub nics: Option<u16>,
}

/// How large a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) cpu: u32,
    pub(super) memory: ByteSize,
    pub(super) storage: ByteSize,
}

impl Sizes {
    /// How large a VM is by its configuration.
    pub(super) fn of(config: &VmConfig) -> Self {
        Self {
            cpu: config.cpu,
            memory: config.memory,
            storage: config.storage,
        }
    }

    /// A configuration that differs in its sizes alone.
    pub(super) fn of_another(self, config: &VmConfig) -> VmConfig {
        VmConfig {
            cpu: self.cpu,
            memory: self.memory,
            storage: self.storage,
            ..config.clone()
        }
    }
}

/// A saved VM: how large it is, and may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saved {
    sizes: Sizes,
    nics: u16,
    boot_memory: ByteSize,
    hugepages: bool,
    most: Sizes,
}

impl Saved {
    /// That of a snapshot: of what its VM process was running, which the guest has in use.
    pub(super) fn of(manifest: &Manifest) -> Self {
        let (cpus, memory) = (manifest.spec.cpus, manifest.spec.memory);
        Self::new(&manifest.config, cpus, memory)
    }

    fn new(config: &VmConfig, cpus: Cpus, memory: Memory) -> Self {
        let sizes = Sizes {
            cpu: cpus.boot + cpus.added,
            memory: memory.size.saturating_add(memory.added),
            storage: config.storage,
        };
        Self {
            sizes,
            nics: config.nics,
            boot_memory: memory.size,
            hugepages: memory.hugepages,
            most: Sizes {
                cpu: cpus.max,
                // Of a VM that was saved before there was any room.
                memory: memory.max.max(sizes.memory),
                storage: ByteSize::from_bytes(u64::MAX),
            },
        }
    }

    /// How large the VM becomes that is made of it; where the user does not say, as large as `current`,
    /// which no VM is less than.
    ///
    /// # Errors
    /// It cannot become so small or large, or have so many NICs.
    pub(super) fn decide(&self, wanted: &Wanted, current: Sizes) -> Result<Sizes, Error> {
        if let Some(nics) = wanted.nics.filter(|nics| *nics != self.nics) {
            return Err(Error::SavedNics {
                saved: self.nics,
                wanted: nics,
            });
        }
        let (saved, most) = (self.sizes, self.most);
        let sizes = Sizes {
            cpu: wanted.cpu.unwrap_or(current.cpu.max(saved.cpu)),
            memory: wanted.memory.unwrap_or(current.memory.max(saved.memory)),
            storage: wanted.storage.unwrap_or(current.storage.max(saved.storage)),
        };
        within("--cpu", sizes.cpu, saved.cpu, most.cpu)?;
        within("--memory", sizes.memory, saved.memory, most.memory)?;
        within("--storage", sizes.storage, saved.storage, most.storage)?;
        self.check_blocks(sizes.memory)?;
        Ok(sizes)
    }

    /// Refuses memory of which the guest would leave a part unused.
    fn check_blocks(&self, memory: ByteSize) -> Result<(), Error> {
        let block = match self.boot_memory < LARGE_MEMORY {
            true => MEMORY_BLOCK,
            false => LARGE_BLOCK,
        };
        let saved = self.sizes.memory;
        if (memory.bytes() - saved.bytes()).is_multiple_of(block.bytes()) {
            return Ok(());
        }
        Err(Error::BadRequest {
            what: "--memory",
            rule: format!("{saved}, as saved, and a multiple of {block} more"),
            given: memory.to_string(),
        })
    }

    /// Refuses a VM whose memory the host's pool of huge pages cannot hold, if that is where it was;
    /// `own` of the pool is the VM's before it begins.
    pub(super) fn check_pool(&self, needed: ByteSize, own: ByteSize) -> Result<(), Error> {
        let free = ByteSize::from_bytes(hugepages::free_bytes());
        self.fits(needed, free.saturating_add(own))
    }

    fn fits(&self, needed: ByteSize, free: ByteSize) -> Result<(), Error> {
        if self.hugepages && free < needed {
            return Err(Error::SavedHugepagesShort { needed, free });
        }
        Ok(())
    }

    /// Whether a VM of these sizes has more than was saved.
    pub(super) fn grows_to(&self, sizes: Sizes) -> bool {
        sizes != self.sizes
    }
}

/// Processors and memory of the saved VM, plugged up to those of `config`.
pub(super) fn plugged(cpus: Cpus, memory: Memory, config: &VmConfig) -> (Cpus, Memory) {
    let more = config.memory.bytes().saturating_sub(memory.size.bytes());
    let cpus = Cpus {
        added: config.cpu.saturating_sub(cpus.boot),
        ..cpus
    };
    let memory = Memory {
        added: ByteSize::from_bytes(more),
        ..memory
    };
    (cpus, memory)
}

/// How much of the host's pool of huge pages a VM with this memory has.
pub(super) fn of_pool(memory: Memory) -> ByteSize {
    match memory.hugepages {
        true => memory.size.saturating_add(memory.added),
        false => ByteSize::default(),
    }
}

fn within<T>(what: &'static str, wanted: T, least: T, most: T) -> Result<(), Error>
where
    T: Ord + std::fmt::Display,
{
    if wanted < least {
        return Err(Error::BelowSaved {
            what,
            saved: least.to_string(),
            given: wanted.to_string(),
        });
    }
    if wanted > most {
        return Err(Error::NoRoom {
            what,
            wanted: wanted.to_string(),
            most: most.to_string(),
        });
    }
    Ok(())
}

/// Has the guest take into use what it has more of than was `saved`, if it has an agent, which then was
/// told who it is.
///
/// # Errors
/// The agent is there, and could not do it.
pub(super) fn take_into_use(
    host: &Host,
    vm: &specify::Of<'_>,
    saved: &Saved,
    introduced: Introduced,
    interrupt: &Interrupt,
) -> Result<Introduced, Error> {
    let sizes = Sizes::of(vm.config);
    let mut warnings = match introduced {
        Introduced::Done(warnings) if saved.grows_to(sizes) => warnings,
        introduced => return Ok(introduced),
    };
    let agent = Agent::new(&host.layout.vm(vm.id).vsock_socket(), interrupt.as_fd());
    let deadline = Instant::now() + GRACE;
    loop {
        let grown = agent
            .grow(PATIENCE)
            .map_err(|error| exec::failed(vm.name.clone(), error))?;
        let missing = missing(&grown, saved.sizes, sizes);
        if missing.is_empty() || Instant::now() >= deadline {
            warnings.extend(grown.warnings);
            warnings.extend(missing);
            return Ok(Introduced::Done(warnings));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What the guest has more of and does not use yet, a sentence each. An agent of before does not tell.
fn missing(grown: &Grown, saved: Sizes, sizes: Sizes) -> Vec<String> {
    let Some(in_use) = grown.in_use else {
        return Vec::new();
    };
    let mut missing = Vec::new();
    if sizes.cpu > saved.cpu && in_use.cpus < sizes.cpu {
        let (cpus, all) = (in_use.cpus, sizes.cpu);
        missing.push(format!("the guest uses {cpus} of its {all} processors"));
    }
    let memory = ByteSize::from_bytes(in_use.memory_bytes);
    if sizes.memory > saved.memory && memory < sizes.memory {
        let all = sizes.memory;
        missing.push(format!("the guest uses {memory} of its {all} of memory"));
    }
    // A disk has whole sectors.
    let least = sizes.storage.bytes() / SECTOR * SECTOR;
    let disk = ByteSize::from_bytes(in_use.disk_bytes);
    if sizes.storage > saved.storage && disk.bytes() < least {
        let all = sizes.storage;
        missing.push(format!("the guest sees {disk} of its disk of {all}"));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use cocoon_agent::protocol::InUse;

    use crate::units::{Digest, EngineName};
    use crate::vm::config::{Hugepages, Layers, Root};

    const MIB: fn(u64) -> ByteSize = ByteSize::from_mib;
    const GIB: fn(u64) -> ByteSize = ByteSize::from_gib;

    fn config(cpu: u32, memory: ByteSize, storage: ByteSize) -> VmConfig {
        let layer = Digest::of(b"layer");
        VmConfig {
            engine: EngineName::Micro,
            cpu,
            memory,
            storage,
            nics: 1,
            hugepages: Hugepages::Off,
            dns: vec![],
            image: "tiny".into(),
            image_digest: layer,
            root: Root::Layers(Layers {
                layers: vec![layer],
                kernel: layer,
                initrd: layer,
            }),
        }
    }

    fn cpus(boot: u32, added: u32) -> Cpus {
        let max = 8;
        Cpus { boot, added, max }
    }

    fn memory(size: ByteSize, added: ByteSize, max: ByteSize) -> Memory {
        Memory {
            size,
            added,
            max,
            hugepages: false,
            balloon: None,
        }
    }

    /// 2 of 8 processors, one of them plugged; 512 MiB and 128 plugged, of 4 GiB; a disk of 1 GiB.
    fn saved() -> Saved {
        let config = config(2, MIB(640), GIB(1));
        Saved::new(&config, cpus(1, 1), memory(MIB(512), MIB(128), GIB(4)))
    }

    type Change = fn(&mut Wanted);

    fn wanted(change: Change) -> Wanted {
        let mut wanted = Wanted::default();
        change(&mut wanted);
        wanted
    }

    #[test]
    fn what_is_not_said_is_what_the_vm_has_and_never_less_than_was_saved() {
        let sizes = |cpu, memory, storage| Sizes {
            cpu,
            memory,
            storage,
        };
        let same = sizes(2, MIB(640), GIB(1));
        let larger = sizes(4, GIB(3), GIB(9));
        let larger = Sizes {
            memory: MIB(640 + 1024),
            ..larger
        };
        let cases: [(Change, Sizes, Sizes); 6] = [
            (|_| {}, same, same),
            (|_| {}, larger, larger),
            (|_| {}, sizes(1, MIB(512), MIB(64)), same),
            (|w| w.cpu = Some(8), same, Sizes { cpu: 8, ..same }),
            (
                |w| w.memory = Some(MIB(640)),
                larger,
                Sizes {
                    memory: MIB(640),
                    ..larger
                },
            ),
            (
                |w| (w.storage, w.nics) = (Some(GIB(20)), Some(1)),
                same,
                Sizes {
                    storage: GIB(20),
                    ..same
                },
            ),
        ];
        for (change, current, expected) in cases {
            let decided = saved().decide(&wanted(change), current).unwrap();
            assert_eq!(decided, expected);
            assert_eq!(saved().grows_to(decided), expected != same);
        }
    }

    #[test]
    fn memory_in_huge_pages_needs_as_many_of_the_pool_and_other_memory_none() {
        let config = config(2, MIB(640), GIB(1));
        let plain = memory(MIB(512), MIB(128), GIB(4));
        let huge = Memory {
            hugepages: true,
            ..plain
        };
        assert_eq!((of_pool(plain), of_pool(huge)), (MIB(0), MIB(640)));
        for (memory, free, enough) in [
            (plain, MIB(0), true),
            (huge, MIB(640), true),
            (huge, MIB(638), false),
        ] {
            let saved = Saved::new(&config, cpus(1, 1), memory);
            assert_eq!(saved.fits(MIB(640), free).is_ok(), enough);
        }
    }

    #[test]
    fn what_a_saved_vm_cannot_become_is_refused_with_the_reason() {
        let cases: [(Change, &str); 9] = [
            (
                |w| w.cpu = Some(1),
                "--cpu must be at least what was saved, 2, not 1",
            ),
            (
                |w| w.memory = Some(MIB(512)),
                "--memory must be at least what was saved, 640MiB, not 512MiB",
            ),
            (
                |w| w.storage = Some(MIB(64)),
                "--storage must be at least what was saved, 1GiB, not 64MiB",
            ),
            (
                |w| w.cpu = Some(9),
                "room for at most 8 by --cpu, not for 9",
            ),
            (
                |w| w.memory = Some(GIB(5)),
                "room for at most 4GiB by --memory, not for 5GiB",
            ),
            (
                |w| w.memory = Some(MIB(700)),
                "--memory must be 640MiB, as saved, and a multiple of 128MiB more, not 700MiB",
            ),
            (|w| w.nics = Some(0), "saved with 1 NICs"),
            (|w| w.nics = Some(2), "cannot have 2"),
            // The first that is wrong is said.
            (|w| (w.cpu, w.nics) = (Some(4), Some(3)), "cannot have 3"),
        ];
        for (change, words) in cases {
            let error = saved().decide(&wanted(change), saved().sizes).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(words), "{words:?} is not in {said:?}");
        }
    }

    #[test]
    fn a_vm_of_before_has_no_room_and_a_large_one_grows_by_large_blocks() {
        let without = config(1, GIB(1), GIB(1));
        let without = Saved::new(&without, cpus(1, 0), memory(GIB(1), GIB(0), GIB(0)));
        let all = without.decide(&Wanted::default(), without.sizes).unwrap();
        assert_eq!(all, without.sizes);
        let more = wanted(|w| w.memory = Some(GIB(2)));
        let said = without.decide(&more, all).unwrap_err().to_string();
        assert!(said.contains("at most 1GiB"), "{said}");

        let large = config(1, GIB(64), GIB(1));
        let large = Saved::new(&large, cpus(1, 0), memory(GIB(64), GIB(0), GIB(256)));
        let odd = wanted(|w| w.memory = Some(GIB(65)));
        let said = large.decide(&odd, large.sizes).unwrap_err().to_string();
        assert!(said.contains("a multiple of 2GiB"), "{said}");
        let even = wanted(|w| w.memory = Some(GIB(66)));
        assert_eq!(large.decide(&even, large.sizes).unwrap().memory, GIB(66));
    }

    #[test]
    fn what_is_plugged_is_counted_from_the_boot_on() {
        let (cpus, memory) = plugged(
            cpus(1, 1),
            memory(MIB(512), MIB(128), GIB(4)),
            &config(4, GIB(1), GIB(1)),
        );
        assert_eq!((cpus.boot, cpus.added, cpus.max), (1, 3, 8));
        assert_eq!((memory.size, memory.added), (MIB(512), MIB(512)));
        assert_eq!(memory.max, GIB(4));
    }

    #[test]
    fn only_of_what_grew_the_guest_is_said_to_lack_something() {
        let saved = saved().sizes;
        let all = Sizes {
            cpu: 4,
            memory: GIB(1),
            storage: ByteSize::from_bytes((2 << 30) + 1),
        };
        let grown = |cpus, memory: ByteSize, disk_bytes| Grown {
            in_use: Some(InUse {
                cpus,
                memory_bytes: memory.bytes(),
                disk_bytes,
            }),
            ..Grown::default()
        };
        let cases = [
            (grown(4, GIB(1), 2 << 30), all, ""),
            (grown(0, GIB(0), 0), saved, ""),
            (Grown::default(), all, ""),
            (grown(1, GIB(1), 2 << 30), all, "uses 1 of its 4 processors"),
            (grown(4, MIB(512), 2 << 30), all, "uses 512MiB of its 1GiB"),
            (grown(4, GIB(1), 1 << 30), all, "sees 1GiB of its disk of"),
        ];
        for (grown, sizes, words) in cases {
            let said = missing(&grown, saved, sizes).join("; ");
            assert!(said.contains(words), "{words:?} is not in {said:?}");
            assert_eq!(said.is_empty(), words.is_empty(), "{said}");
        }
    }
}
