//! Requests under way when the VM is saved, the device reset, or its queue gone.

use vm_memory::{Bytes, GuestAddress};

use super::super::persist::State;
use super::super::queue::Progress;
use super::*;
use crate::micro::virtio::fixture::{Ring, memory};

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
