use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::PAGE;
use super::device::Balloon;
use super::persist::State;
use super::queue::{runs, whole};
use crate::micro::devices::DeviceState;
use crate::micro::notice::Problem;
use crate::micro::virtio::fixture::{Buffer, Driver, MEMORY_END, NO_RAM};
use crate::micro::virtio::mmio::state::TransportState;
use crate::units::ByteSize;

/// Memory of the guest in which the driver of these tests keeps nothing, up to [`NO_RAM`].
const FREE: u64 = 8 << 20;

fn balloon(target: u64) -> Balloon {
    Balloon::new(ByteSize::from_mib(target), false, None)
}

/// A guest all of whose free memory is in use.
fn guest(balloon: Balloon, features: u64) -> Driver {
    let driver = Driver::start(Box::new(balloon), features);
    let full = vec![0x55; usize::try_from(MEMORY_END - FREE).unwrap()];
    driver
        .memory
        .write_slice(&full, GuestAddress(FREE))
        .unwrap();
    driver
}

/// Whether the host has a page for this one of the guest's (Documentation/admin-guide/mm/pagemap).
fn present(driver: &Driver, at: u64) -> bool {
    let host = driver.memory.get_host_address(GuestAddress(at)).unwrap();
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap
        .read_exact_at(&mut entry, host as u64 / PAGE * 8)
        .unwrap();
    // Present, or in swap.
    u64::from_le_bytes(entry) >> 62 != 0
}

/// Pages from `FREE` on that the host has no page for; all others must be as they were.
fn gone(driver: &Driver) -> Vec<u64> {
    let pages = (MEMORY_END - FREE) / PAGE;
    let (kept, gone): (Vec<u64>, Vec<u64>) =
        (0..pages).partition(|page| present(driver, FREE + page * PAGE));
    for page in kept {
        let mut bytes = [0; 4096];
        let at = GuestAddress(FREE + page * PAGE);
        driver.memory.read_slice(&mut bytes, at).unwrap();
        assert!(bytes == [0x55; 4096], "page {page} is as it was");
    }
    gone
}

/// Page numbers from `FREE` on, as a driver sends them.
fn numbers(pages: &[u64]) -> Vec<u8> {
    let number = |page| u32::try_from(FREE / PAGE + page).unwrap().to_le_bytes();
    pages.iter().copied().flat_map(number).collect()
}

fn range(from: u64, length: u32) -> Buffer {
    Buffer {
        at: FREE + from,
        length,
        writable: true,
    }
}

#[test]
fn page_numbers_join_to_runs() {
    // Each run by its first page and the one after its last.
    for (numbers, expected) in [
        (vec![], vec![]),
        (vec![3], vec![(3, 4)]),
        (vec![5, 4, 3], vec![(3, 6)]),
        (vec![3, 3, 4], vec![(3, 5)]),
        (vec![9, 1, 2, 8, 0], vec![(0, 3), (8, 10)]),
        (vec![u32::MAX], vec![(0xffff_ffff, 0x1_0000_0000)]),
    ] {
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(first, end)| first * PAGE..end * PAGE)
            .collect();
        assert_eq!(runs(numbers.into_iter()), expected);
    }
}

#[test]
fn only_whole_pages_within_a_range_are_given_up() {
    for (range, page, expected) in [
        (0x1000..0x3000, 0x1000, 0x1000..0x3000),
        (0x1001..0x3fff, 0x1000, 0x2000..0x3000),
        (0x1001..0x1fff, 0x1000, 0x1000..0x1000),
        (0x1001..0x2fff, 0x1000, 0x2000..0x2000),
        (0x1000..0x3f_f000, 2 << 20, 0x20_0000..0x20_0000),
        (0x1000..0x40_0000, 2 << 20, 0x20_0000..0x40_0000),
        (
            u64::MAX - 1..u64::MAX,
            0x1000,
            u64::MAX - 4095..u64::MAX - 4095,
        ),
    ] {
        let found = whole(&range, page);
        assert_eq!(found, expected, "{range:x?}");
    }
}

#[test]
fn inflating_gives_up_its_pages_and_no_others() {
    let mut driver = guest(balloon(4), u64::MAX);
    assert_eq!(gone(&driver), [0; 0]);
    // In an order of no one's, and cut within a number.
    let bytes = numbers(&[7, 3, 100, 4, 5]);
    let chain = [driver.put(&bytes[..6]), driver.put(&bytes[6..])];
    let head = driver.send(0, &chain);
    assert_eq!(driver.wait(0), (head, 0));
    assert_eq!(gone(&driver), [3, 4, 5, 7, 100]);
    // What comes back is a page like any other.
    let chain = [driver.put(&numbers(&[4]))];
    let head = driver.send(1, &chain);
    assert_eq!(driver.wait(1), (head, 0));
    let at = GuestAddress(FREE + 4 * PAGE);
    assert_eq!(driver.memory.read_obj::<u64>(at).unwrap(), 0);
    driver.memory.write_slice(&[0x55; 4096], at).unwrap();
    assert_eq!(gone(&driver), [3, 5, 7, 100]);
}

#[test]
fn more_requests_than_one_event_takes_are_all_served() {
    let mut driver = guest(balloon(4), 0);
    for page in 0..20 {
        let chain = [driver.put(&numbers(&[page]))];
        driver.rings[0].offer(&chain);
    }
    driver.notify(0);
    for _ in 0..20 {
        driver.wait(0);
    }
    assert_eq!(gone(&driver), (0..20).collect::<Vec<_>>());
}

#[test]
fn reported_ranges_are_given_up_on_whichever_queue_the_driver_counts_to() {
    for queue in [2, 4] {
        let mut driver = guest(balloon(4), u64::MAX);
        let chain = [range(PAGE, 8192), range(64 * PAGE + 1, 3 * 4096)];
        let head = driver.send(queue, &chain);
        assert_eq!(driver.wait(queue), (head, 0));
        assert_eq!(gone(&driver), [1, 2, 65, 66]);
    }
}

#[test]
fn of_huge_pages_only_whole_ones_are_given_up() {
    let mut driver = guest(Balloon::new(ByteSize::from_mib(4), true, None), u64::MAX);
    let huge = 2 << 20;
    driver.send(4, &[range(PAGE, huge), range(2 << 20, huge)]);
    driver.wait(4);
    assert_eq!(gone(&driver), (512..1024).collect::<Vec<_>>());
}

#[test]
fn hostile_requests_are_faults_and_give_up_nothing() {
    let far = |driver: &mut Driver, number: u64| {
        let number = u32::try_from(number).unwrap();
        vec![driver.put(&[numbers(&[1]), number.to_le_bytes().to_vec()].concat())]
    };
    type Make = Box<dyn Fn(&mut Driver) -> Vec<Buffer>>;
    let cases: Vec<(usize, Make, &str)> = vec![
        (
            0,
            Box::new(move |driver| far(driver, NO_RAM / PAGE)),
            "for pages outside of its memory",
        ),
        (
            0,
            Box::new(move |driver| far(driver, u64::from(u32::MAX))),
            "for pages outside of its memory",
        ),
        (
            0,
            Box::new(|driver| vec![driver.put(&numbers(&[1])[..3])]),
            "with half of a page number",
        ),
        (
            1,
            Box::new(|driver| vec![driver.put(&[0; 6])]),
            "with half of a page number",
        ),
        (
            0,
            Box::new(|_| vec![range(0, 4)]),
            "for pages that is to be written",
        ),
        (
            4,
            Box::new(|driver| vec![driver.put(&[0; 4096])]),
            "to report memory that is to be read",
        ),
        (
            4,
            Box::new(|_| vec![range(0, 4096), range(MEMORY_END - FREE - PAGE, 8192)]),
            "outside of its memory",
        ),
        (
            0,
            Box::new(|_| {
                vec![Buffer {
                    at: FREE,
                    length: (64 << 10) + 4,
                    writable: false,
                }]
            }),
            "that is too long",
        ),
    ];
    for (queue, make, what) in cases {
        let mut driver = guest(balloon(4), u64::MAX);
        let chain = make(&mut driver);
        driver.send(queue, &chain);
        let fault = driver.fault();
        assert_eq!(fault.device, "balloon");
        match fault.problem {
            Problem::Request {
                queue: of,
                what: said,
            } => {
                assert_eq!((usize::from(of), said), (queue, what));
            }
            other => panic!("{what}: {other}"),
        }
        assert_eq!(gone(&driver), [0; 0], "{what}");
    }
}

#[test]
fn the_size_is_told_to_the_driver_and_back_and_outlives_a_snapshot() {
    let balloon = balloon(4);
    let size = balloon.size();
    let mut driver = guest(balloon, u64::MAX);
    assert_eq!(driver.config(0, 12), [0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(size.actual(), ByteSize::from_mib(0));
    driver.write(0x104, 0x300);
    assert_eq!(size.actual(), ByteSize::from_mib(3));
    driver.write(0x100, 0x300);
    assert_eq!(
        driver.config(0, 8),
        [0, 4, 0, 0, 0, 3, 0, 0],
        "no driver sets it"
    );

    let saved = driver.save();
    let state: TransportState = postcard::from_bytes(&saved).unwrap();
    let DeviceState::Balloon(state) = state.device else {
        panic!("{state:?}");
    };
    let (target, actual) = (0x400, 0x300);
    assert_eq!(state, State { target, actual });
    let restored = Balloon::new(ByteSize::from_mib(9), false, Some(&state));
    let size = restored.size();
    driver.restore(Box::new(restored), &saved).unwrap();
    assert_eq!(size.target(), ByteSize::from_mib(4));
    assert_eq!(size.actual(), ByteSize::from_mib(3));
    let chain = [driver.put(&numbers(&[9]))];
    driver.send(0, &chain);
    driver.wait(0);
    assert_eq!(gone(&driver), [9]);
    driver.lanes.park().unwrap();
    driver.lanes.unpark();
    driver.transport.reset();
    assert_eq!(size.actual(), ByteSize::from_mib(0));
}
