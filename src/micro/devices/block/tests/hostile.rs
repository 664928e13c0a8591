//! Drivers that mean harm.

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::super::queue::Progress;
use super::*;
use crate::micro::fixture::logged;
use crate::micro::notice::Problem;
use crate::micro::virtio::fixture::{NO_RAM, Ring, memory};

#[test]
fn what_no_device_can_answer_is_a_fault_told_once() {
    type Hostile = fn(&mut Driver) -> Vec<Buffer>;
    let cases: [(&str, Hostile, &str); 5] = [
        (
            "no status",
            |d| vec![d.put(&header(FLUSH, 0))],
            "status byte",
        ),
        (
            "status of no bytes",
            |d| vec![d.put(&header(IN, 0)), d.room(0)],
            "status byte",
        ),
        (
            "data outside",
            |d| {
                let outside = Buffer {
                    at: NO_RAM,
                    length: 512,
                    writable: true,
                };
                vec![d.put(&header(IN, 0)), outside, d.room(1)]
            },
            "outside of its memory",
        ),
        (
            "status first",
            |d| vec![d.room(1), d.put(&header(FLUSH, 0))],
            "out of order",
        ),
        (
            "far too long",
            |d| {
                let large = Buffer {
                    at: 0,
                    length: 15 << 20,
                    writable: true,
                };
                [vec![d.put(&header(IN, 0))], vec![large; 150]].concat()
            },
            "too long",
        ),
    ];
    for ring in BACKENDS {
        for (case, hostile, what) in &cases {
            let file = file(8);
            let mut driver = Driver::start(open(file.path(), ring), ALL);
            let room = driver.room(512);
            driver.begin_on(0, IN, 0, &[room]);
            let chain = hostile(&mut driver);
            driver.send(0, &chain);
            let fault = driver.fault();
            assert_eq!(fault.device, "disk cocoon-cow", "{case}");
            assert!(
                fault.problem.to_string().contains(what),
                "{case}: {fault:?}"
            );
            driver.notify(0);
            driver.write(0x70, 0);
            assert!(driver.told().is_none(), "{case}");
        }
    }
}

#[test]
fn a_ring_that_says_too_much_is_a_fault() {
    let file = file(8);
    let mut driver = Driver::start(open(file.path(), true), ALL);
    driver.rings[1].set_available(257);
    driver.notify(1);
    let fault = driver.fault();
    assert!(matches!(fault.problem, Problem::Queue { queue: 1, .. }));
}

#[test]
fn a_disk_that_fails_for_ever_fills_no_log() {
    for ring in BACKENDS {
        // Nothing is behind it, though it says 8 sectors.
        let empty = Arc::new(tempfile::tempfile().unwrap());
        let memory = memory();
        let mut backend = Backend::new(empty, 4, ring);
        backend.attach(memory.clone());
        memory
            .write_slice(&header(IN, 0), GuestAddress(HEADER_AT))
            .unwrap();
        let mut driver = Ring::new(&memory, TABLE_AT, 8);
        let chain =
            [(HEADER_AT, 16), (DATA_AT, 512), (DATA_AT + 512, 1)].map(|(at, length)| Buffer {
                at,
                length,
                writable: at != HEADER_AT,
            });
        let mut requests = requests(driver.queue(), &memory, backend);
        let said = logged(|| {
            for _ in 0..3 {
                let head = driver.offer(&chain);
                requests.process().and_then(|_| requests.finish()).unwrap();
                assert_eq!(driver.take(), Some((head, 1)));
            }
        });
        assert_eq!(said.matches("the host failed a disk").count(), 1, "{said}");
    }
}

/// Descriptors and heads as a driver that means harm would write them, mostly near what is valid.
fn hostile() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let at = prop_oneof![
        Just(HEADER_AT),
        Just(DATA_AT),
        Just(TABLE_AT),
        Just(NO_RAM - 8),
        any::<u64>(),
    ];
    let length = prop_oneof![Just(16), Just(512), Just(1), Just(0), any::<u32>()];
    prop::collection::vec((at, length, 0_u16..8, 0_u16..10), 8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_descriptors_harm_a_read_only_disk_or_the_host(
        descriptors in hostile(),
        heads in prop::collection::vec(0_u16..9, 1..8),
        header in prop_oneof![
            (0_u32..15, 0_u64..10).prop_map(|(kind, sector)| header(kind, sector)),
            prop::collection::vec(any::<u8>(), 16),
        ],
        ring: bool,
    ) {
        let file = file(8);
        let memory = memory();
        memory.write_slice(&header, GuestAddress(HEADER_AT)).unwrap();
        let mut driver = Ring::new(&memory, TABLE_AT, 8);
        for (index, (at, length, flags, next)) in (0..).zip(descriptors) {
            driver.describe(index, Descriptor::new(at, length, flags, next));
        }
        for head in &heads {
            driver.make_available(*head);
        }
        let opened = std::fs::File::open(file.path()).unwrap();
        let mut backend = Backend::new(Arc::new(opened), 4, ring);
        backend.attach(memory.clone());
        let mut requests = requests(driver.queue(), &memory, backend);
        let mut finished = Ok(Progress::default());
        for _ in 0..heads.len() {
            finished = requests.process().and_then(|_| requests.finish());
            if finished.is_err() {
                break;
            }
        }
        match finished {
            // Every chain that was taken is used once.
            Ok(_) => prop_assert_eq!(usize::from(driver.used()), heads.len()),
            Err(problem) => {
                let told = matches!(problem, Problem::Request { .. } | Problem::Queue { .. });
                prop_assert!(told, "the guest is at fault, not the host: {problem:?}");
            }
        }
        drop(requests);
        prop_assert_eq!(std::fs::read(file.path()).unwrap(), pattern(8));
    }
}
