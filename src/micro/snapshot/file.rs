//! The state file of a snapshot.
//!
//! ```text
//!  0        8        12       16              24
//!  ├ magic ─┼ version ┼ CRC-32 ┼ payload length ┼ payload: the state, by postcard ─┤ end of file
//!                      of all that follows it
//! ```
//! Little-endian. Postcard describes nothing of itself, so a change of any saved type, however
//! small, is a change of [`VERSION`]. The CRC is there against accidents (it finds every flipped bit
//! and every burst up to 32 bits long); who must trust a file's origin compares its SHA-256, which
//! the snapshot's manifest holds.
//!
//! Invariant: a state is taken from a file whole, or not at all.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::{Durability, atomic};

/// Version of the saved types. A file of any other is refused.
const VERSION: u32 = 2;

/// How every state file begins, whatever its version.
const MAGIC: [u8; 8] = *b"cocoonMS";

/// Bytes before the payload.
const HEADER: usize = 24;

/// Largest state file, in bytes. A vCPU takes about 20 KiB (11 KiB of it XSAVE with AMX, then 2 KiB
/// of MSRs, 4 KiB of CPUID, 1 KiB of APIC), a device with 32 queues about 2 KiB: 16 vCPUs and 100
/// devices are half a MiB, and 512 vCPUs still fit. A reader needs no more memory than some
/// multiple of this, whatever the file says.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

/// Why bytes are not a state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    /// Something else.
    #[error("it is no state file of the micro engine")]
    Foreign,
    /// A later cocoon wrote it.
    #[error("it was written by a newer cocoon: its version is {0}, this cocoon reads {VERSION}")]
    Newer(u32),
    /// An earlier cocoon wrote it.
    #[error("it was written by an older cocoon: its version is {0}, this cocoon reads {VERSION}")]
    Older(u32),
    /// Something is missing, or too much is there.
    #[error("it is {actual} bytes long and should be {expected}")]
    Length {
        /// What is there.
        actual: u64,
        /// What the header says.
        expected: u64,
    },
    /// Above [`MAX_BYTES`].
    #[error("it is longer than {MAX_BYTES} bytes, which no state is")]
    TooLong,
    /// Some bytes are not those that were written.
    #[error("its checksum is wrong")]
    Checksum,
    /// The checksum is right, the content is not.
    #[error("its content is no state")]
    Content(#[source] postcard::Error),
    /// A state, and more.
    #[error("its content is a state and {0} bytes more")]
    Excess(usize),
}

/// A failure to read or write a state file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("cannot read the state file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is none.
    #[error("cannot use the state file {}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Damage,
    },
    /// It cannot be written.
    #[error("cannot write the state file {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes a state file, whole or not at all, readable by its owner alone.
///
/// # Errors
/// The file cannot be written, or the state is longer than any that would be read.
pub(crate) fn write<T: Serialize>(path: &Path, state: &T) -> Result<(), FileError> {
    let refused = |source| FileError::Refused {
        path: path.to_owned(),
        source,
    };
    let bytes = encode(state).map_err(refused)?;
    atomic::write(path, &bytes, Durability::Full).map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Reads a state file.
///
/// # Errors
/// The file cannot be read, or is not exactly what was written.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })?;
    decode(&bytes).map_err(|source| FileError::Refused {
        path: path.to_owned(),
        source,
    })
}

/// The bytes of a state file.
///
/// # Errors
/// [`Damage::TooLong`] or [`Damage::Content`].
pub(crate) fn encode<T: Serialize>(state: &T) -> Result<Vec<u8>, Damage> {
    let bytes = postcard::to_extend(state, vec![0; HEADER]).map_err(Damage::Content)?;
    seal(bytes)
}

/// The state in the bytes of a state file.
///
/// # Errors
/// They are not exactly what [`encode`] made.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damage> {
    unsealed(open(bytes)?)
}

/// The state in a payload.
///
/// # Errors
/// [`Damage::Content`] or [`Damage::Excess`].
pub(crate) fn unsealed<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Damage> {
    let (state, rest) = postcard::take_from_bytes(payload).map_err(Damage::Content)?;
    match rest.len() {
        0 => Ok(state),
        more => Err(Damage::Excess(more)),
    }
}

/// Fills in the header of `bytes`, which have room for it.
fn seal(mut bytes: Vec<u8>) -> Result<Vec<u8>, Damage> {
    let length = bytes.len() as u64;
    if length > MAX_BYTES {
        return Err(Damage::TooLong);
    }
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..HEADER].copy_from_slice(&(length - HEADER as u64).to_le_bytes());
    let checksum = crc32fast::hash(&bytes[16..]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// The payload of a state file.
fn open(bytes: &[u8]) -> Result<&[u8], Damage> {
    let (magic, rest) = bytes.split_first_chunk().ok_or(Damage::Foreign)?;
    if *magic != MAGIC {
        return Err(Damage::Foreign);
    }
    let cut = Damage::Length {
        actual: bytes.len() as u64,
        expected: HEADER as u64,
    };
    // What follows the version is this version's affair.
    let Some((version, rest)) = rest.split_first_chunk() else {
        return Err(cut);
    };
    match u32::from_le_bytes(*version) {
        version if version > VERSION => return Err(Damage::Newer(version)),
        version if version < VERSION => return Err(Damage::Older(version)),
        _ => {}
    }
    let Some((checksum, checked)) = rest.split_first_chunk() else {
        return Err(cut);
    };
    let Some((length, payload)) = checked.split_first_chunk() else {
        return Err(cut);
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Damage::TooLong);
    }
    let expected = u64::from_le_bytes(*length).saturating_add(HEADER as u64);
    if bytes.len() as u64 != expected {
        let actual = bytes.len() as u64;
        return Err(Damage::Length { actual, expected });
    }
    if crc32fast::hash(checked) != u32::from_le_bytes(*checksum) {
        return Err(Damage::Checksum);
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        numbers: Vec<u64>,
        name: String,
        choice: Option<[u8; 3]>,
    }

    fn samples() -> impl Strategy<Value = Sample> {
        (any::<Vec<u64>>(), any::<String>(), any::<Option<[u8; 3]>>()).prop_map(
            |(numbers, name, choice)| Sample {
                numbers,
                name,
                choice,
            },
        )
    }

    fn refused(bytes: &[u8]) -> String {
        decode::<Sample>(bytes).unwrap_err().to_string()
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(sample in samples()) {
            prop_assert_eq!(decode::<Sample>(&encode(&sample).unwrap()).unwrap(), sample);
        }

        #[test]
        fn any_flipped_bit_is_noticed(sample in samples(), at in any::<prop::sample::Index>()) {
            let mut bytes = encode(&sample).unwrap();
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode::<Sample>(&bytes).is_err(), "bit {}", bit);
        }

        #[test]
        fn any_missing_end_is_noticed(sample in samples(), at in any::<prop::sample::Index>()) {
            let bytes = encode(&sample).unwrap();
            let length = at.index(bytes.len());
            prop_assert!(decode::<Sample>(&bytes[..length]).is_err(), "{} bytes", length);
        }

        #[test]
        fn anything_behind_the_end_is_noticed(sample in samples(), more in any::<Vec<u8>>()) {
            let mut bytes = encode(&sample).unwrap();
            prop_assume!(!more.is_empty());
            bytes.extend(more);
            prop_assert!(decode::<Sample>(&bytes).is_err());
        }

        #[test]
        fn no_bytes_at_all_do_harm(payload in any::<Vec<u8>>()) {
            let _ = decode::<Sample>(&payload);
            let sealed = seal([vec![0; HEADER], payload].concat()).unwrap();
            if let Ok(sample) = decode::<Sample>(&sealed) {
                prop_assert!(decode::<Sample>(&encode(&sample).unwrap()).is_ok());
            }
        }
    }

    #[test]
    fn each_refusal_says_why() {
        let good = encode(&(7_u64, "seven")).unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let newer = "it was written by a newer cocoon: its version is 3, this cocoon reads 2";
        let older = "it was written by an older cocoon: its version is 1, this cocoon reads 2";
        for (bytes, expected) in [
            (vec![], "it is no state file of the micro engine"),
            (with(0, b'C'), "it is no state file of the micro engine"),
            (with(8, 3), newer),
            (with(8, 3)[..12].to_vec(), newer),
            (with(8, 1), older),
            (good[..10].to_vec(), "it is 10 bytes long and should be 24"),
            (
                good[..good.len() - 1].to_vec(),
                "it is 30 bytes long and should be 31",
            ),
            (
                [good.as_slice(), &[0]].concat(),
                "it is 32 bytes long and should be 31",
            ),
            (with(26, 0), "its checksum is wrong"),
            (
                seal([good.as_slice(), &[0]].concat()).unwrap(),
                "its content is a state and 1 bytes more",
            ),
            (
                seal(good[..good.len() - 1].to_vec()).unwrap(),
                "its content is no state",
            ),
        ] {
            let error = decode::<(u64, String)>(&bytes).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_state_may_be_as_long_as_agreed_and_not_a_byte_longer() {
        let longest = usize::try_from(MAX_BYTES).unwrap();
        assert!(seal(vec![0; longest]).is_ok());
        assert!(matches!(seal(vec![0; longest + 1]), Err(Damage::TooLong)));
        let mut bytes = seal(vec![0; HEADER]).unwrap();
        bytes.resize(longest + 1, 0);
        assert!(refused(&bytes).contains("longer than 16777216 bytes"));
    }

    #[test]
    fn a_length_that_promises_the_world_takes_no_memory() {
        // A postcard length of 2^63 - 1, then nothing.
        let promise = [&[0xff; 8][..], &[0x7f]].concat();
        let bytes = seal([vec![0; HEADER], promise].concat()).unwrap();
        assert_eq!(refused(&bytes), "its content is no state");
    }

    #[test]
    fn files_are_the_users_alone_and_their_errors_name_them() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write(&path, &(7_u64, "seven")).unwrap();
        let (number, name): (u64, String) = read(&path).unwrap();
        assert_eq!((number, name.as_str()), (7, "seven"));
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = read::<Sample>(&folder.path().join("none")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot read the state file /")
        );
        std::fs::write(&path, b"elf").unwrap();
        let error = read::<Sample>(&path).unwrap_err();
        assert!(error.to_string().starts_with("cannot use the state file /"));
    }
}
