//! Identifiers of VMs and snapshots: 16 lower-case hex digits from the OS's random source.

use std::fmt;
use std::str::FromStr;

use super::serde_as_string;

/// Hex digits in an identifier.
const DIGITS: usize = 16;

/// The shortest prefix that a user may give instead of the whole identifier.
pub const SHORTEST_PREFIX: usize = 3;

/// Why a text is not an identifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an id: ids have 16 lower-case hex digits")]
pub struct InvalidId(String);

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// A new identifier.
            ///
            /// # Errors
            /// The kernel's random source cannot be read.
            pub fn random() -> std::io::Result<Self> {
                Ok(Self(random_u64()?))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse(text).map(Self).ok_or_else(|| InvalidId(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!("{:016x}", self.0))
            }
        }

        serde_as_string!($name);
    };
}

identifier! {
    /// Identifies a virtual machine for its whole life.
    VmId
}

identifier! {
    /// Identifies a snapshot.
    SnapshotId
}

identifier! {
    /// Identifies one run of a VM, from a start to the end of its process.
    RunId
}

fn parse(text: &str) -> Option<u64> {
    let digits =
        text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

fn random_u64() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    // getrandom(2) fills requests of up to 256 bytes whole once the pool is initialised.
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_sixteen_hex_digits_and_round_trips() {
        let id = VmId::random().unwrap();
        assert_eq!(id.to_string().len(), DIGITS);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(
            "000000000000000a".parse::<VmId>().unwrap().to_string(),
            "000000000000000a"
        );
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "abc",
            "000000000000000A",
            "0000000000000000a",
            "+00000000000000a",
            "../../../../etc/p",
        ] {
            assert!(text.parse::<VmId>().is_err(), "{text}");
        }
    }
}
