//! What a disk is, and what it is not made of.

use super::super::device::BlockError;
use super::super::persist::State;
use super::*;
use crate::micro::devices::DeviceState;
use crate::micro::virtio::mmio::state::TransportState;

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
fn a_disk_that_grew_since_it_was_saved_says_so() {
    let file = file(8);
    for (sectors, has_grown) in [(0, true), (7, true), (8, false)] {
        let block = Block::open(&disk(file.path()), Some(&State { sectors })).unwrap();
        assert_eq!(block.has_changed(), has_grown, "{sectors}");
        assert_eq!(block.config()[..8], 8_u64.to_le_bytes());
        let now = DeviceState::Block(State { sectors: 8 });
        assert_eq!(block.save(), now);
    }
    let new = Block::open(&disk(file.path()), None).unwrap();
    assert!(!new.has_changed());
}

#[test]
fn a_driver_is_told_that_its_disk_grew_while_it_was_saved() {
    let file = file(8);
    let mut driver = Driver::start(open(file.path(), true), 0);
    let saved = driver.save();
    file.as_file().set_len(16 * 512).unwrap();
    let grown = |saved: &[u8]| {
        let state: TransportState = postcard::from_bytes(saved).unwrap();
        let DeviceState::Block(state) = state.device else {
            panic!("it is a disk");
        };
        Box::new(Block::open(&disk(file.path()), Some(&state)).unwrap())
    };
    driver.restore(grown(&saved), &saved).unwrap();
    assert!(driver.interrupted(std::time::Duration::from_secs(20)));
    assert_eq!(driver.config(0, 8), 16_u64.to_le_bytes());
    assert_eq!(driver.read(0xfc), 1, "the generation of the configuration");
    let data = driver.room(512);
    assert_eq!(driver.ask(IN, 15, &[data]).0, OK);
    assert_eq!(driver.ask(IN, 16, &[data]).0, IOERR);
    // Told once. That a queue was used may stand there: the driver saw it before its interrupt came.
    const CONFIGURATION_CHANGED: u32 = 1 << 1;
    let saved = driver.save();
    driver.restore(grown(&saved), &saved).unwrap();
    assert_eq!(driver.read(0x60) & CONFIGURATION_CHANGED, 0);
    assert_eq!(driver.read(0xfc), 1);
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
    let larger = State { sectors: 9 };
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
            Some(&larger),
            "but had 9 when the VM was saved",
        ),
    ] {
        let error: BlockError = Block::open(&disk, saved).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
