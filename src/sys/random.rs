//! Random numbers of the system.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// So many random bytes. getrandom(2) fills up to 256 whole once its pool is initialised, for which it waits.
///
/// # Errors
/// The system has none.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    Ok(bytes)
}
