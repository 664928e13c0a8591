//! A small device of two queues behind the transport, driven through its registers.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::state::TransportState;
use super::*;
use crate::micro::bus::{Region, lock};
use crate::micro::devices::DeviceState;
use crate::micro::fixture::logged;
use crate::micro::virtio::device::{Placed, QueueHandler};
use crate::micro::virtio::fixture::{Driver, NO_RAM};

type Log = Arc<Mutex<Vec<String>>>;

/// Uses every chain with the length 7.
#[derive(Debug)]
struct Sevens {
    log: Log,
    config: [u8; 8],
    refuses: bool,
}

#[derive(Debug)]
struct Seven {
    log: Log,
    memory: GuestMemoryMmap,
    index: u16,
    queue: Queue,
    kick: EventFd,
    interrupt: Arc<Interrupt>,
}

impl Device for Sevens {
    fn name(&self) -> &str {
        "sevens"
    }
    fn kind(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        0b101 | 1 << VIRTIO_RING_F_EVENT_IDX
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }
    fn config(&self) -> Vec<u8> {
        self.config.to_vec()
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        lock(&self.log).push(format!("config {offset} {data:?}"));
    }
    fn activate(&mut self, activation: Activation) -> Result<Vec<Placed>, Fault> {
        let queues: Vec<_> = activation.queues.iter().map(|queue| queue.index).collect();
        let features = activation.features;
        lock(&self.log).push(format!("activate {queues:?} {features:#x}"));
        if self.refuses {
            let source = io::Error::other("not today");
            let operation = "begin";
            return Err(Fault {
                device: self.name().to_owned(),
                problem: Problem::Host { operation, source },
            });
        }
        let placed = |queue: ActiveQueue| Placed {
            lane: usize::from(queue.index),
            handler: Box::new(Seven {
                log: Arc::clone(&self.log),
                memory: activation.memory.clone(),
                index: queue.index,
                queue: queue.queue,
                kick: queue.kick,
                interrupt: Arc::clone(&activation.interrupt),
            }),
        };
        Ok(activation.queues.into_iter().map(placed).collect())
    }
    fn reset(&mut self) {
        lock(&self.log).push("reset".to_owned());
    }
    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }
}

impl MutEventSubscriber for Seven {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.kick.read().unwrap();
        while let Some(chain) = self.queue.iter(&self.memory).unwrap().next() {
            let head = chain.head_index();
            self.queue.add_used(&self.memory, head, 7).unwrap();
        }
        if self.queue.needs_notification(&self.memory).unwrap() {
            self.interrupt.used();
        }
    }
    fn init(&mut self, ops: &mut EventOps<'_>) {
        ops.add(Events::new(&self.kick, EventSet::IN)).unwrap();
    }
}

impl QueueHandler for Seven {
    fn quiesce(&mut self) -> Result<(), Fault> {
        lock(&self.log).push(format!("quiesce {}", self.index));
        Ok(())
    }
    fn queues(&self) -> Vec<(u16, QueueState)> {
        vec![(self.index, self.queue.state())]
    }
}

impl Drop for Seven {
    fn drop(&mut self) {
        lock(&self.log).push(format!("gone {}", self.index));
    }
}

fn sevens() -> (Box<dyn Device>, Log) {
    let log = Log::default();
    let device = Sevens {
        log: Arc::clone(&log),
        config: [1, 2, 3, 4, 5, 6, 7, 8],
        refuses: false,
    };
    (Box::new(device), log)
}

fn taken(log: &Log) -> Vec<String> {
    std::mem::take(&mut *lock(log))
}

const V1: u64 = 1 << VIRTIO_F_VERSION_1;

#[test]
fn registers_say_what_the_device_is() {
    let mut driver = Driver::find(sevens().0);
    for (register, expected) in [
        (0x00, 0x7472_6976),
        (0x04, 2),
        (0x08, 42),
        (0x34, 8),
        (0x44, 0),
        (0x60, 0),
        (0x70, 0),
        (0xb0, u32::MAX),
        (0xfc, 0),
        (0x18, 0),
        (0x52, 0),
    ] {
        assert_eq!(driver.read(register), expected, "{register:#x}");
    }
    for (queue, longest) in [(1, 16), (2, 0), (u32::MAX, 0)] {
        driver.write(0x30, queue);
        assert_eq!(driver.read(0x34), longest, "queue {queue}");
    }
    assert_eq!(driver.offered(), 0b101 | 1 << 29 | V1);
    driver.write(0x14, 7);
    assert_eq!(driver.read(0x10), 0, "features beyond 64");
}

#[test]
fn registers_are_four_bytes_wide_and_the_configuration_is_any() {
    let (device, log) = sevens();
    let mut driver = Driver::find(device);
    for width in [1, 2, 3, 8] {
        let mut data = vec![0xaa; width];
        driver.transport.read(0, &mut data);
        assert_eq!(data, vec![0; width], "{width} bytes of the magic");
        driver.transport.write(0x70, &vec![1; width]);
    }
    assert_eq!(driver.read(0x70), 0);
    for (offset, width, expected) in [
        (0, 1, vec![1]),
        (1, 2, vec![2, 3]),
        (0, 8, vec![1, 2, 3, 4, 5, 6, 7, 8]),
        (6, 4, vec![7, 8, 0, 0]),
        (8, 2, vec![0, 0]),
        (0xeff, 1, vec![0]),
        (u64::MAX - 0x100, 4, vec![0; 4]),
    ] {
        assert_eq!(driver.config(offset, width), expected, "{offset}");
    }
    driver.transport.write(0x103, &[9, 9]);
    assert_eq!(taken(&log), ["config 3 [9, 9]"]);
}

#[test]
fn features_are_taken_only_if_offered_and_not_legacy() {
    for (features, taken) in [
        (V1, true),
        (V1 | 0b101, true),
        (0b101, false),
        (V1 | 0b010, false),
        (V1 | 1 << 63, false),
    ] {
        let mut driver = Driver::find(sevens().0);
        assert_eq!(driver.negotiate(features), taken, "{features:#x}");
    }
}

#[test]
fn status_moves_in_order_only() {
    for (writes, expected) in [
        (vec![1], 1),
        (vec![2], 0),
        (vec![3], 3),
        (vec![1, 3, 2], 3),
        (vec![8], 0),
        (vec![3, 7], 3),
        (vec![3, 0], 0),
        (vec![0x83], 0x83),
        (vec![0x100], 0),
        (vec![0x40], 0),
    ] {
        let mut driver = Driver::find(sevens().0);
        for value in &writes {
            driver.write(0x70, *value);
        }
        assert_eq!(driver.read(0x70), expected, "{writes:?}");
    }
}

#[test]
fn an_active_device_serves_its_queues_until_status_is_zero() {
    let (device, log) = sevens();
    let mut driver = Driver::start(device, 0b001);
    assert_eq!(taken(&log), ["reset", "activate [0, 1] 0x100000001"]);
    for queue in [0, 1, 0] {
        let buffer = driver.room(8);
        let head = driver.send(queue, &[buffer]);
        assert!(driver.interrupted(std::time::Duration::from_secs(20)));
        assert_eq!(driver.rings[queue].take(), Some((head, 7)));
        assert_eq!(driver.read(0x60), 0, "all is acknowledged");
    }
    driver.write(0x70, 0);
    let mut told = taken(&log);
    assert_eq!(told.pop().as_deref(), Some("reset"));
    assert_eq!(told, ["quiesce 0", "quiesce 1", "gone 0", "gone 1"]);
    assert_eq!(driver.read(0x70), 0);
    driver.write(0x30, 0);
    assert_eq!(driver.read(0x44), 0, "the queue is not ready any more");

    driver.begin(0b100);
    let buffer = driver.room(8);
    let head = driver.send(1, &[buffer]);
    assert_eq!(driver.wait(1), (head, 7));
}

#[test]
fn only_queues_that_are_ready_are_active_and_they_stay_as_they_are() {
    let (device, log) = sevens();
    let mut driver = Driver::find(device);
    assert!(driver.negotiate(V1));
    driver.set_up_queue(1, 4);
    driver.write(0x70, 15);
    assert_eq!(taken(&log).last().unwrap(), "activate [1] 0x100000000");
    driver.write(0x30, 1);
    driver.write(0x44, 0);
    driver.write(0x80, 0x100);
    assert_eq!(driver.read(0x44), 1, "an active queue is not changed");
    let buffer = driver.room(8);
    let head = driver.rings[0].offer(&[buffer]);
    driver.notify(1);
    assert_eq!(driver.wait(0), (head, 7));
    driver.notify(2);
    driver.notify(usize::try_from(u32::MAX).unwrap());
}

#[test]
fn a_ring_that_is_none_needs_a_reset_and_gets_no_handler() {
    let good = QueueState {
        max_size: 8,
        size: 8,
        ready: true,
        desc_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x3000,
        ..QueueState::default()
    };
    let with = |change: fn(&mut QueueState)| {
        let mut state = good;
        change(&mut state);
        state
    };
    for (case, state) in [
        ("size 0", with(|q| q.size = 0)),
        ("size 3", with(|q| q.size = 3)),
        ("size too large", with(|q| q.size = 16)),
        ("table unaligned", with(|q| q.desc_table = 0x1008)),
        ("available unaligned", with(|q| q.avail_ring = 0x2001)),
        ("used unaligned", with(|q| q.used_ring = 0x3002)),
        ("table outside", with(|q| q.desc_table = NO_RAM)),
        ("available outside", with(|q| q.avail_ring = NO_RAM)),
        ("used outside", with(|q| q.used_ring = NO_RAM)),
        ("table half outside", with(|q| q.desc_table = NO_RAM - 0x70)),
        ("used half outside", with(|q| q.used_ring = NO_RAM - 0x44)),
        ("table at the end", with(|q| q.desc_table = u64::MAX - 15)),
        ("available at zero", with(|q| q.avail_ring = 0)),
    ] {
        let (device, log) = sevens();
        let mut driver = Driver::find(device);
        assert!(driver.negotiate(V1));
        driver.tell_queue(0, &state);
        taken(&log);
        driver.write(0x70, 15);
        assert_eq!(driver.read(0x70), 0x4f, "{case}");
        assert_eq!(driver.read(0x60), 2, "{case}: a configuration change");
        assert_eq!(driver.read(0xfc), 1, "{case}");
        assert_eq!(taken(&log), [""; 0], "{case}");
        assert!(driver.told().is_none(), "{case}");
        driver.begin(0);
        let buffer = driver.room(8);
        let head = driver.send(0, &[buffer]);
        assert_eq!(driver.wait(0), (head, 7), "{case}: a reset heals");
    }
}

#[test]
fn a_driver_that_sets_up_broken_rings_for_ever_fills_no_log() {
    let mut driver = Driver::find(sevens().0);
    let said = logged(|| {
        for _ in 0..3 {
            assert!(driver.negotiate(V1));
            let state = QueueState {
                size: 8,
                ready: true,
                ..QueueState::default()
            };
            driver.tell_queue(0, &state);
            driver.write(0x70, 15);
            assert_eq!(driver.read(0x70), 0x4f);
        }
    });
    assert_eq!(said.matches("a ring that is none").count(), 1, "{said}");
}

#[test]
fn a_ring_may_end_where_ram_ends() {
    let mut driver = Driver::find(sevens().0);
    assert!(driver.negotiate(V1));
    let state = QueueState {
        size: 8,
        ready: true,
        desc_table: NO_RAM - 128,
        avail_ring: 0x2000,
        used_ring: 0x3000,
        ..QueueState::default()
    };
    driver.tell_queue(0, &state);
    driver.write(0x70, 15);
    assert_eq!(driver.read(0x70), 15);
}

#[test]
fn a_device_that_cannot_begin_stops_the_vm() {
    let log = Log::default();
    let config = [0; 8];
    let refuses = true;
    let mut driver = Driver::find(Box::new(Sevens {
        log,
        config,
        refuses,
    }));
    assert!(driver.negotiate(V1));
    driver.write(0x70, 15);
    assert_eq!(driver.read(0x70), 0x4f);
    assert_eq!(driver.fault().device, "sevens");
}

#[test]
fn a_restored_device_serves_what_was_available_and_repeats_its_interrupt() {
    let (device, log) = sevens();
    let mut driver = Driver::start(device, 0b100);
    let buffer = driver.room(8);
    let first = driver.send(1, &[buffer]);
    assert_eq!(driver.wait(1), (first, 7));
    // Made available, but not notified before the save.
    let second = driver.rings[1].offer(&[buffer]);
    taken(&log);
    let saved = driver.save();
    assert_eq!(taken(&log), ["quiesce 0", "quiesce 1"]);

    let (device, log) = sevens();
    driver.restore(device, &saved).unwrap();
    assert_eq!(taken(&log), ["activate [0, 1] 0x100000004"]);
    assert_eq!(driver.wait(1), (second, 7));
    assert_eq!(driver.rings[1].used(), 2);
    let third = driver.send(0, &[buffer]);
    assert_eq!(driver.wait(0), (third, 7));
}

#[test]
fn an_interrupt_that_was_not_acknowledged_comes_again_after_restore() {
    let mut driver = Driver::find(sevens().0);
    driver.transport.interrupt.configuration_changed();
    let saved = driver.save();
    driver.restore(sevens().0, &saved).unwrap();
    assert_eq!(driver.read(0x60), 2);
    assert_eq!(driver.read(0xfc), 1, "the generation goes on");
    assert!(driver.interrupted(std::time::Duration::from_secs(20)));
    assert_eq!(driver.read(0x60), 0);
}

#[test]
fn a_half_initialised_device_is_restored_as_it_was() {
    let mut driver = Driver::find(sevens().0);
    assert!(driver.negotiate(V1 | 0b001));
    driver.set_up_queue(1, 4);
    let saved = driver.save();
    let (device, log) = sevens();
    driver.restore(device, &saved).unwrap();
    assert_eq!(taken(&log), [""; 0]);
    assert_eq!(driver.read(0x44), 1, "the selected queue is ready");
    driver.write(0x70, 15);
    assert_eq!(taken(&log), ["activate [1] 0x100000001"]);
}

#[test]
fn a_saved_state_that_no_driver_brings_about_is_refused() {
    let driver = Driver::start(sevens().0, 0);
    let saved: TransportState = postcard::from_bytes(&driver.save()).unwrap();
    let json = serde_json::to_value(&saved).unwrap();
    for (field, value) in [
        ("kind", 2.into()),
        ("status", 4.into()),
        ("status", 16.into()),
        ("features", 0.into()),
        ("features", (V1 | 2).into()),
        ("queues", serde_json::json!([])),
        ("interrupt_status", 4.into()),
    ] {
        let mut driver = Driver::find(sevens().0);
        let mut changed = json.clone();
        changed[field] = value;
        let state: TransportState = serde_json::from_value(changed).unwrap();
        let bytes = postcard::to_stdvec(&state).unwrap();
        let error = driver.restore(sevens().0, &bytes).unwrap_err();
        assert!(matches!(error, TransportError::Unfit { .. }), "{field}");
    }
    for (field, value) in [("size", 3_u64), ("desc_table", NO_RAM), ("used_ring", 2)] {
        let mut driver = Driver::find(sevens().0);
        let mut changed = json.clone();
        changed["queues"][1][field] = value.into();
        let state: TransportState = serde_json::from_value(changed).unwrap();
        let bytes = postcard::to_stdvec(&state).unwrap();
        let error = driver.restore(sevens().0, &bytes).unwrap_err();
        let TransportError::Fault(fault) = error else {
            panic!("{field}: {error}");
        };
        let broken = matches!(fault.problem, Problem::Queue { queue: 1, .. });
        assert!(broken, "{field}");
    }
}
