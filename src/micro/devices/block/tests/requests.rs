//! Requests, each answered as the specification and the file say.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use tempfile::TempDir;

use super::*;

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
