//! Any sequence of requests against a model that is a vector of bytes.

use proptest::prelude::*;

use super::*;

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
