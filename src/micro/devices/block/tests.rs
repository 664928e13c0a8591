//! Disks behind their transport: real files, real memory, real lanes, both backends.

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::{NamedTempFile, TempDir};
use virtio_queue::Queue;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::backend::Backend;
use super::device::{Block, BlockError};
use super::persist::State;
use super::queue::{Progress, Requests};
use super::request::Shape;
use crate::micro::notice::Problem;
use crate::micro::virtio::device::Device;
use crate::micro::virtio::fixture::{Buffer, Driver, NO_RAM, Ring, memory};
use crate::vm::spec::{Disk, DiskFormat};

const ALL: u64 = u64::MAX;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// With io_uring and without.
const BACKENDS: [bool; 2] = [true, false];

fn file(sectors: u64) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&pattern(sectors)).unwrap();
    file
}

/// No two sectors are the same.
fn pattern(sectors: u64) -> Vec<u8> {
    let words = (0..sectors * 64).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    words.flat_map(u64::to_le_bytes).collect()
}

fn disk(path: &Path) -> Disk {
    Disk {
        path: path.to_owned(),
        readonly: false,
        format: DiskFormat::Raw,
        serial: "cocoon-cow".to_owned(),
        queues: 2,
    }
}

fn open(path: &Path, ring: bool) -> Box<dyn Device> {
    Box::new(Block::open_with(&disk(path), None, ring).unwrap())
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let (kind, sector) = (u64::from(kind).to_le_bytes(), sector.to_le_bytes());
    [kind, sector].concat()
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let (sectors, flags) = (u64::from(sectors), u64::from(flags));
    [sector, flags << 32 | sectors]
        .map(u64::to_le_bytes)
        .concat()
}

impl Driver {
    /// One request with data in `buffers`: its status and used length.
    fn ask(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) -> (u8, u32) {
        self.ask_on(0, kind, sector, buffers)
    }

    fn ask_on(&mut self, queue: usize, kind: u32, sector: u64, buffers: &[Buffer]) -> (u8, u32) {
        let (head, status) = self.begin_on(queue, kind, sector, buffers);
        let (used, length) = self.wait(queue);
        assert_eq!(used, head);
        (self.bytes(status)[0], length)
    }

    fn begin_on(
        &mut self,
        queue: usize,
        kind: u32,
        sector: u64,
        buffers: &[Buffer],
    ) -> (u16, Buffer) {
        let header = self.put(&header(kind, sector));
        let status = self.room(1);
        let chain = [&[header], buffers, &[status]].concat();
        (self.send(queue, &chain), status)
    }
}

#[test]
fn the_configuration_tells_size_limits_and_queues() {
    let file = file(16);
    let mut driver = Driver::find(open(file.path(), true));
    assert_eq!(driver.read(0x08), 2);
    for (name, offset, expected) in [
        ("capacity", 0, 16_u64.to_le_bytes().to_vec()),
        ("seg_max", 12, 254_u32.to_le_bytes().to_vec()),
        ("blk_size", 20, 512_u32.to_le_bytes().to_vec()),
        ("physical_block_exp", 24, vec![3]),
        ("num_queues", 34, vec![2, 0]),
        (
            "max_discard_sectors",
            36,
            (1_u32 << 21).to_le_bytes().to_vec(),
        ),
        ("max_discard_seg", 40, vec![1, 0, 0, 0]),
        ("discard_sector_alignment", 44, vec![8, 0, 0, 0]),
        ("max_write_zeroes_seg", 52, vec![1, 0, 0, 0]),
        ("write_zeroes_may_unmap", 56, vec![1]),
        ("what follows", 60, vec![0; 16]),
        ("what is far", 0xe00, vec![0; 8]),
    ] {
        assert_eq!(driver.config(offset, expected.len()), expected, "{name}");
    }
}

#[test]
fn features_follow_from_the_disk() {
    let file = file(8);
    for (readonly, queues, has, has_not) in [
        (false, 1, vec![9, 13, 14, 28, 29], vec![5, 12]),
        (false, 4, vec![9, 12, 13, 14], vec![5]),
        (true, 1, vec![2, 5, 6, 10], vec![9, 13, 14]),
    ] {
        let disk = Disk {
            readonly,
            queues,
            ..disk(file.path())
        };
        let block = Block::open(&disk, None).unwrap();
        for bit in has {
            assert_ne!(block.features() & 1 << bit, 0, "{disk:?}: {bit}");
        }
        for bit in has_not {
            assert_eq!(block.features() & 1 << bit, 0, "{disk:?}: {bit}");
        }
        assert_eq!(block.queue_sizes().len(), usize::from(queues));
    }
}

#[test]
fn what_is_no_disk_is_refused() {
    let odd = NamedTempFile::new().unwrap();
    odd.as_file().set_len(513).unwrap();
    let good = file(8);
    let long = Disk {
        serial: "123456789012345678901".to_owned(),
        ..disk(good.path())
    };
    let changed = State { sectors: 9 };
    for (disk, saved, expected) in [
        (
            disk(Path::new("/nonexistent/disk")),
            None,
            "cannot open disk",
        ),
        (disk(odd.path()), None, "is 513 bytes long"),
        (long, None, "longer than 20 bytes"),
        (
            disk(good.path()),
            Some(&changed),
            "but had 9 when the VM was saved",
        ),
    ] {
        let error: BlockError = Block::open(&disk, saved).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn data_is_read_and_written_across_pieces() {
    for ring in BACKENDS {
        let file = file(64);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        let rooms = [1, 511, 512, 1000, 24].map(|length| driver.room(length));
        assert_eq!(driver.ask(IN, 3, &rooms), (OK, 2049));
        let read: Vec<u8> = rooms.iter().flat_map(|room| driver.bytes(*room)).collect();
        assert_eq!(read, pattern(64)[3 * 512..7 * 512]);

        let data = [7_u8, 8].map(|byte| vec![byte; 768]);
        let buffers = [driver.put(&data[0]), driver.put(&data[1])];
        assert_eq!(driver.ask(OUT, 61, &buffers), (OK, 1));
        let mut written = [0; 1536];
        file.as_file()
            .read_exact_at(&mut written, 61 * 512)
            .unwrap();
        assert_eq!(written.to_vec(), data.concat());
        assert_eq!(driver.ask(FLUSH, 0, &[]), (OK, 1));
        assert_eq!(driver.ask(IN, 64, &[]), (OK, 1), "nothing at the end");
    }
}

#[test]
fn a_header_may_be_split_and_share_a_buffer_with_data() {
    for ring in BACKENDS {
        let file = file(8);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        let request = [header(OUT, 1), vec![5; 512]].concat();
        let pieces = [
            driver.put(&request[..3]),
            driver.put(&request[3..100]),
            driver.put(&request[100..]),
        ];
        let status = driver.room(1);
        driver.send(0, &[&pieces[..], &[status]].concat());
        assert_eq!(driver.wait(0).1, 1);
        assert_eq!(driver.bytes(status), [OK]);

        let both = driver.room(513);
        let head = driver.put(&header(IN, 1));
        let head = driver.send(0, &[head, both]);
        assert_eq!(driver.wait(0), (head, 513));
        let (data, status) = (vec![5; 512], vec![OK]);
        assert_eq!(driver.bytes(both), [data, status].concat());
    }
}

#[test]
fn requests_of_other_queues_are_served_by_their_own_lanes() {
    for ring in BACKENDS {
        let file = file(64);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        let mut rooms = Vec::new();
        for sector in 0..32 {
            let room = driver.room(1024);
            let queue = usize::try_from(sector % 2).unwrap();
            driver.begin_on(queue, IN, sector, &[room]);
            rooms.push(room);
        }
        for request in 0..32 {
            assert_eq!(driver.wait(request % 2).1, 1025);
        }
        for (sector, room) in rooms.iter().enumerate() {
            let at = sector * 512;
            assert_eq!(driver.bytes(*room), pattern(64)[at..at + 1024]);
        }
    }
}

#[test]
fn many_more_requests_than_the_queue_is_long_are_served() {
    for ring in BACKENDS {
        let file = file(8);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        let header = driver.put(&header(IN, 2));
        let (room, status) = (driver.room(512), driver.room(1));
        let mut sent = 0;
        for used in 0..3000 {
            while sent < 3000 && sent - used < 85 {
                driver.rings[0].offer(&[header, room, status]);
                sent += 1;
            }
            driver.notify(0);
            assert_eq!(driver.wait(0).1, 513);
        }
        assert_eq!(driver.bytes(room), pattern(8)[1024..1536]);
    }
}

#[test]
fn what_cannot_be_done_is_answered() {
    for ring in BACKENDS {
        let file = file(64);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        let (room, half) = (driver.room(1024), driver.room(500));
        let (data, odd) = (driver.put(&[1; 1024]), driver.put(&[1; 513]));
        for (case, kind, sector, buffer, expected) in [
            ("a read over the end", IN, 63, room, IOERR),
            ("a read beyond", IN, 64, room, IOERR),
            ("a read around", IN, u64::MAX, room, IOERR),
            ("a read of half a sector", IN, 0, half, IOERR),
            ("a write over the end", OUT, 63, data, IOERR),
            ("a write around", OUT, u64::MAX - 1, data, IOERR),
            ("a write of a sector and a byte", OUT, 0, odd, IOERR),
            ("a kind of old", 2, 0, data, UNSUPP),
            ("secure erase", 14, 0, data, UNSUPP),
            ("a kind that is none", u32::MAX, 0, data, UNSUPP),
        ] {
            assert_eq!(driver.ask(kind, sector, &[buffer]), (expected, 1), "{case}");
        }
        for (case, kind, segment, expected) in [
            ("over the end", DISCARD, segment(60, 5, 0), IOERR),
            ("around", DISCARD, segment(u64::MAX, 1, 0), IOERR),
            ("too much", DISCARD, segment(0, u32::MAX, 0), IOERR),
            ("unmap", DISCARD, segment(0, 1, 1), UNSUPP),
            ("unknown flag", WRITE_ZEROES, segment(0, 1, 2), UNSUPP),
            ("over the end", WRITE_ZEROES, segment(64, 1, 0), IOERR),
            ("half a segment", DISCARD, vec![0; 8], IOERR),
            ("two segments", WRITE_ZEROES, vec![0; 32], IOERR),
            ("no segment", DISCARD, vec![], IOERR),
            ("no sectors", DISCARD, segment(64, 0, 0), OK),
            ("no sectors", WRITE_ZEROES, segment(0, 0, 0), OK),
        ] {
            let data = driver.put(&segment);
            assert_eq!(driver.ask(kind, 0, &[data]), (expected, 1), "{case} {kind}");
        }
        let (short, status) = (driver.put(&[0; 15]), driver.room(1));
        driver.send(0, &[short, status]);
        assert_eq!(driver.wait(0).1, 1);
        assert_eq!(driver.bytes(status), [IOERR], "half a header");
        assert!(driver.told().is_none(), "the VM lives");
        let mut after = vec![0; 64 * 512];
        file.as_file().read_exact_at(&mut after, 0).unwrap();
        assert_eq!(after, pattern(64), "nothing has changed");
    }
}

#[test]
fn a_read_only_disk_is_read_and_not_written() {
    for ring in BACKENDS {
        let file = file(8);
        let disk = Disk {
            readonly: true,
            ..disk(file.path())
        };
        let block = Block::open_with(&disk, None, ring).unwrap();
        let mut driver = Driver::start(Box::new(block), ALL);
        let (room, data) = (driver.room(512), driver.put(&[1; 512]));
        let zero = driver.put(&segment(0, 1, 0));
        assert_eq!(driver.ask(IN, 0, &[room]), (OK, 513));
        assert_eq!(driver.ask(OUT, 0, &[data]), (IOERR, 1));
        assert_eq!(driver.ask(WRITE_ZEROES, 0, &[zero]), (UNSUPP, 1));
        assert_eq!(driver.ask(DISCARD, 0, &[zero]), (UNSUPP, 1));
        assert_eq!(std::fs::read(file.path()).unwrap(), pattern(8));
    }
}

#[test]
fn the_serial_is_told_and_no_more() {
    let file = file(8);
    let mut driver = Driver::start(open(file.path(), true), ALL);
    for (length, expected, used) in [
        (20, &b"cocoon-cow\0\0\0\0\0\0\0\0\0\0"[..], 21),
        (4, b"coco", 5),
        (22, b"cocoon-cow\0\0\0\0\0\0\0\0\0\0\xaa\xaa", 21),
    ] {
        let room = driver.room(length);
        assert_eq!(driver.ask(GET_ID, 0, &[room]), (OK, used));
        assert_eq!(driver.bytes(room), expected);
    }
}

#[test]
fn discarded_sectors_are_holes() {
    for ring in BACKENDS {
        let file = file(2048);
        file.as_file().sync_all().unwrap();
        let before = file.as_file().metadata().unwrap().blocks();
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        let segment = driver.put(&segment(512, 1024, 0));
        assert_eq!(driver.ask(DISCARD, 0, &[segment]), (OK, 1));
        file.as_file().sync_all().unwrap();
        let after = file.as_file().metadata().unwrap();
        assert!(after.blocks() + 1024 <= before, "{before} {after:?}");
        assert_eq!(after.len(), 1 << 20);
        let read = std::fs::read(file.path()).unwrap();
        assert_eq!(read[..512 * 512], pattern(2048)[..512 * 512]);
        assert!(read[512 * 512..1536 * 512].iter().all(|byte| *byte == 0));
        assert_eq!(read[1536 * 512..], pattern(2048)[1536 * 512..]);
    }
}

#[test]
fn zeroed_sectors_are_zero_on_each_file_system() {
    // A tmpfs cannot zero a range, but punch a hole.
    let folders = [std::env::temp_dir(), "/dev/shm".into()];
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        for (ring, flags) in [(true, 0), (true, 1), (false, 0), (false, 1)] {
            let folder = TempDir::new_in(folder).unwrap();
            let path = folder.path().join("disk");
            std::fs::write(&path, pattern(64)).unwrap();
            let mut driver = Driver::start(open(&path, ring), ALL);
            let segment = driver.put(&segment(3, 13, flags));
            assert_eq!(driver.ask(WRITE_ZEROES, 0, &[segment]), (OK, 1));
            let mut expected = pattern(64);
            expected[3 * 512..16 * 512].fill(0);
            assert_eq!(std::fs::read(&path).unwrap(), expected, "{path:?} {flags}");
        }
    }
}

#[test]
fn a_driver_that_never_flushes_is_served() {
    for ring in BACKENDS {
        let file = file(8);
        let mut driver = Driver::start(open(file.path(), ring), 0);
        let data = driver.put(&[9; 512]);
        assert_eq!(driver.ask(OUT, 7, &[data]), (OK, 1));
        assert_eq!(std::fs::read(file.path()).unwrap()[7 * 512..], [9; 512]);
    }
}

#[test]
fn a_file_that_became_shorter_fails_the_request_and_not_the_vm() {
    for ring in BACKENDS {
        let file = file(16);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        file.as_file().set_len(4 * 512 + 100).unwrap();
        let room = driver.room(1024);
        assert_eq!(driver.ask(IN, 8, &[room]), (IOERR, 1), "all is gone");
        assert_eq!(driver.ask(IN, 3, &[room]), (IOERR, 1), "half is gone");
        assert_eq!(driver.ask(IN, 2, &[room]), (OK, 1025), "all is there");
    }
}

#[test]
fn interrupts_come_when_the_driver_wants_them() {
    for ring in BACKENDS {
        let file = file(8);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        driver.rings[0].set_used_event(4);
        for used in 1..=4 {
            let room = driver.room(512);
            driver.begin_on(0, IN, 0, &[room]);
            while driver.rings[0].used() < used {
                std::thread::yield_now();
            }
        }
        // The lane is done with what it does before it takes a call.
        driver.transport.quiesce().unwrap();
        assert_eq!(driver.read(0x60), 0, "the fifth is what it waits for");
        assert!(!driver.interrupted(Duration::ZERO));
        assert_eq!(driver.rings[0].avail_event(), 4, "it wants to be notified");
        let room = driver.room(512);
        driver.begin_on(0, IN, 0, &[room]);
        assert!(driver.interrupted(Duration::from_secs(20)));
        assert_eq!(driver.rings[0].used(), 5);
    }
}

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

/// Reads of 1 MiB each from a file that the page cache does not hold.
fn cold(driver: &mut Driver, path: &Path) -> Vec<(Buffer, Buffer)> {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut begun = Vec::new();
    for index in 0..10 {
        let room = driver.room(1 << 20);
        let queue = index % 2;
        let (_, status) = driver.begin_on(queue, IN, 2048 * index as u64, &[room]);
        begun.push((room, status));
    }
    begun
}

#[test]
fn a_save_completes_what_is_under_way_and_a_restore_goes_on() {
    for ring in BACKENDS {
        let file = file(20_480);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        let begun = cold(&mut driver, file.path());
        let saved = driver.save();
        let used: u16 = driver.rings.iter().map(Ring::used).sum();
        let done = |driver: &Driver| {
            let done = begun
                .iter()
                .filter(|(_, status)| driver.bytes(*status) == [OK]);
            done.count()
        };
        assert_eq!(done(&driver), usize::from(used), "what was taken is done");
        let state = State { sectors: 20_480 };
        let again = Block::open_with(&disk(file.path()), Some(&state), ring).unwrap();
        driver.restore(Box::new(again), &saved).unwrap();
        for index in 0..10 {
            assert_eq!(driver.wait(index % 2).1, (1 << 20) + 1);
        }
        assert_eq!(done(&driver), 10);
        let expected = pattern(20_480);
        for (index, (room, _)) in begun.iter().enumerate() {
            assert_eq!(driver.bytes(*room), expected[index << 20..][..1 << 20]);
        }
    }
}

#[test]
fn a_disk_works_again_after_a_reset_during_requests() {
    for ring in BACKENDS {
        let file = file(20_480);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        cold(&mut driver, file.path());
        driver.write(0x70, 0);
        driver.begin(ALL);
        let room = driver.room(512);
        assert_eq!(driver.ask(IN, 4, &[room]), (OK, 513));
        assert_eq!(driver.bytes(room), pattern(8)[4 * 512..5 * 512]);
    }
}

/// Writes to `pipe` once this thread sleeps, which it does in nothing but a system call that waits.
fn fill_when_this_thread_waits(mut pipe: std::io::PipeWriter) -> std::thread::JoinHandle<()> {
    let thread = rustix::thread::gettid().as_raw_nonzero();
    let state = format!("/proc/self/task/{thread}/stat");
    std::thread::spawn(move || {
        // proc(5): the state follows the name in parentheses. No thread, no wait.
        while let Ok(stat) = std::fs::read_to_string(&state) {
            if stat.contains(") S ") {
                pipe.write_all(&[5; 512]).unwrap();
                break;
            }
            std::thread::yield_now();
        }
    })
}

#[test]
fn finishing_and_dropping_wait_for_what_is_under_way() {
    let ways: [fn(Requests); 2] = [
        |mut requests| {
            let progress = requests.finish().unwrap();
            assert!(progress.notify, "it is used");
            // Whatever is under way now ends with the test.
            std::mem::forget(requests);
        },
        drop,
    ];
    for end in ways {
        // A pipe is a disk that answers when it is told to.
        let (pipe, writer) = std::io::pipe().unwrap();
        let pipe = std::fs::File::from(std::os::fd::OwnedFd::from(pipe));
        let mut backend = Backend::new(Arc::new(pipe), 4, true);
        if backend.kind() != "io_uring" {
            println!("SKIPPED: this kernel has no io_uring for us");
            return;
        }
        let memory = memory();
        backend.attach(memory.clone());
        memory
            .write_slice(&header(IN, 0), GuestAddress(HEADER_AT))
            .unwrap();
        let mut driver = Ring::new(&memory, TABLE_AT, 8);
        let [head, room, status] =
            [(HEADER_AT, 16), (DATA_AT, 512), (DATA_AT + 512, 1)].map(|(at, length)| Buffer {
                at,
                length,
                writable: at != HEADER_AT,
            });
        driver.offer(&[head, room, status]);
        let mut requests = requests(driver.queue(), &memory, backend);
        assert_eq!(requests.process().unwrap(), Progress::default());
        assert_eq!(driver.used(), 0, "it is under way");
        // As the device keeps it.
        let backend = Arc::clone(&requests.backend);
        let filler = fill_when_this_thread_waits(writer);
        end(requests);
        let mut read = [0; 512];
        memory.read_slice(&mut read, GuestAddress(DATA_AT)).unwrap();
        assert_eq!(read, [5; 512], "it was waited for");
        filler.join().unwrap();
        drop(backend);
    }
}

/// A queue of a read-only disk of 8 sectors, on no lane.
fn requests(queue: Queue, memory: &GuestMemoryMmap, backend: Backend) -> Requests {
    Requests {
        index: 0,
        queue,
        memory: memory.clone(),
        shape: Shape {
            sectors: 8,
            readonly: true,
            features: ALL,
        },
        id: [0; 20],
        backend: Arc::new(Mutex::new(backend)),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read {
        sector: u64,
        pieces: Vec<u32>,
    },
    Write {
        sector: u64,
        pieces: Vec<u32>,
        fill: u8,
    },
    Zero {
        sector: u64,
        sectors: u32,
        flags: u32,
    },
    Discard {
        sector: u64,
        sectors: u32,
    },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let pieces = || prop::collection::vec(0_u32..1500, 0..5);
    let sector = || 0_u64..70;
    prop_oneof![
        (sector(), pieces()).prop_map(|(sector, pieces)| Step::Read { sector, pieces }),
        (sector(), pieces(), any::<u8>()).prop_map(|(sector, pieces, fill)| Step::Write {
            sector,
            pieces,
            fill
        }),
        (sector(), 0_u32..20, 0_u32..3).prop_map(|(sector, sectors, flags)| Step::Zero {
            sector,
            sectors,
            flags
        }),
        (sector(), 0_u32..20).prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        Just(Step::Flush),
    ]
}

/// Pieces with a last one that makes them whole sectors, but for some that are to be refused.
fn whole(mut pieces: Vec<u32>) -> Vec<u32> {
    let total: u32 = pieces.iter().sum();
    if !total.is_multiple_of(7) {
        pieces.push(total.next_multiple_of(512) - total);
    }
    pieces
}

/// The bytes that a range of sectors covers, if the model's disk has them.
fn covered(model: &[u8], sector: u64, length: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(sector).unwrap() * 512;
    let fits = length.is_multiple_of(512) && start + length <= model.len();
    fits.then_some(start..start + length)
}

fn take_step(driver: &mut Driver, model: &mut [u8], queue: usize, step: Step) {
    match step {
        Step::Read { sector, pieces } => {
            let rooms: Vec<_> = whole(pieces).iter().map(|n| driver.room(*n)).collect();
            let length = rooms.iter().map(|room| room.length as usize).sum();
            let (status, used) = driver.ask_on(queue, IN, sector, &rooms);
            let read: Vec<u8> = rooms.iter().flat_map(|room| driver.bytes(*room)).collect();
            match covered(model, sector, length) {
                Some(range) => {
                    assert_eq!((status, used as usize), (OK, length + 1));
                    assert_eq!(read, model[range]);
                }
                None => {
                    assert_eq!((status, used), (IOERR, 1));
                    assert!(read.iter().all(|byte| *byte == 0xaa));
                }
            }
        }
        Step::Write {
            sector,
            pieces,
            fill,
        } => {
            let pieces = whole(pieces).into_iter().map(|n| vec![fill; n as usize]);
            let buffers: Vec<_> = pieces.map(|piece| driver.put(&piece)).collect();
            let length = buffers.iter().map(|buffer| buffer.length as usize).sum();
            let (status, _) = driver.ask_on(queue, OUT, sector, &buffers);
            let range = covered(model, sector, length);
            assert_eq!(status, if range.is_some() { OK } else { IOERR });
            range.into_iter().for_each(|range| model[range].fill(fill));
        }
        Step::Zero {
            sector,
            sectors,
            flags,
        } => {
            let data = driver.put(&segment(sector, sectors, flags));
            let (status, _) = driver.ask_on(queue, WRITE_ZEROES, 0, &[data]);
            let range = covered(model, sector, sectors as usize * 512);
            let expected = match (flags, &range) {
                (2, _) => UNSUPP,
                (_, Some(_)) => OK,
                _ => IOERR,
            };
            assert_eq!(status, expected);
            let range = range.filter(|_| status == OK);
            range.into_iter().for_each(|range| model[range].fill(0));
        }
        Step::Discard { sector, sectors } => {
            let data = driver.put(&segment(sector, sectors, 0));
            let (status, _) = driver.ask_on(queue, DISCARD, 0, &[data]);
            let range = covered(model, sector, sectors as usize * 512);
            assert_eq!(status, if range.is_some() { OK } else { IOERR });
            // These file systems punch holes.
            range.into_iter().for_each(|range| model[range].fill(0));
        }
        Step::Flush => assert_eq!(driver.ask_on(queue, FLUSH, 0, &[]), (OK, 1)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_sequence_of_requests_leaves_the_file_as_the_model(
        steps in prop::collection::vec((step(), 0_usize..2), 1..40),
        ring: bool,
    ) {
        let file = file(64);
        let mut model = pattern(64);
        let mut driver = Driver::start(open(file.path(), ring), ALL);
        for (step, queue) in steps {
            take_step(&mut driver, &mut model, queue, step);
        }
        prop_assert_eq!(std::fs::read(file.path()).unwrap(), model);
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

const HEADER_AT: u64 = 0x20_0000;
const DATA_AT: u64 = 0x30_0000;
const TABLE_AT: u64 = 0x10_0000;

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
