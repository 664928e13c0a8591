//! Sizes in bytes, written the way Docker writes them: `512M`, `1.5GiB`, `1048576`.
//!
//! Powers of 1024 throughout, whatever the spelling of the unit.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. Serialised as a plain number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteSize(u64);

/// Why a text is not a size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a size: {reason}")]
pub struct InvalidByteSize {
    text: String,
    reason: &'static str,
}

/// Unit letters in ascending powers of 1024.
const UNITS: [(char, &str); 5] = [
    ('k', "KiB"),
    ('m', "MiB"),
    ('g', "GiB"),
    ('t', "TiB"),
    ('p', "PiB"),
];

impl ByteSize {
    /// A size of `n` bytes.
    pub const fn from_bytes(n: u64) -> Self {
        Self(n)
    }

    /// A size of `n` MiB.
    pub const fn from_mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// A size of `n` GiB.
    pub const fn from_gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Both together, or the most that can be said.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason| InvalidByteSize {
            text: text.to_owned(),
            reason,
        };
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(lower.len());
        let (number, suffix) = lower.split_at(digits);
        let shift = power_of_1024(suffix.trim()).ok_or(fail("use a unit like K, M, G or T"))? * 10;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
            return Err(fail("start with a number, for example 512M or 1.5G"));
        }
        let too_large = || fail("it is larger than this program can count");
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let bytes = (u128::from(whole) << shift)
            + fraction_of(fraction, shift).ok_or(fail("too many decimals"))?;
        u64::try_from(bytes).map(Self).map_err(|_| too_large())
    }
}

/// `k`, `kb` and `kib` are 1, `m` is 2 and so on; nothing and `b` are 0.
fn power_of_1024(suffix: &str) -> Option<u32> {
    if suffix.is_empty() || suffix == "b" {
        return Some(0);
    }
    let (letter, rest) = suffix.split_at_checked(1)?;
    if !matches!(rest, "" | "b" | "ib") {
        return None;
    }
    (1u32..)
        .zip(UNITS)
        .find(|(_, (unit, _))| letter.starts_with(*unit))
        .map(|(power, _)| power)
}

/// The bytes in `0.<digits>` units of `1 << shift`, rounded down.
fn fraction_of(digits: &str, shift: u32) -> Option<u128> {
    if digits.is_empty() {
        return Some(0);
    }
    // 18 decimals keep the product below within 128 bits for every unit.
    let places = u32::try_from(digits.len()).ok().filter(|n| *n <= 18)?;
    let value: u128 = digits.parse().ok()?;
    Some((value << shift) / 10u128.pow(places))
}

impl fmt::Display for ByteSize {
    /// At most four significant digits in the largest unit that leaves a value of 1 or more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shift = 0;
        let mut unit = "B";
        for (_, name) in UNITS {
            if self.0 >> (shift + 10) == 0 {
                break;
            }
            shift += 10;
            unit = name;
        }
        let whole = self.0 >> shift;
        let decimals: u32 = match whole {
            // Most are whole, and long lists are made of them.
            _ if self.0.trailing_zeros() >= shift => 0,
            0..10 => 3,
            10..100 => 2,
            100..1000 => 1,
            _ => 0,
        };
        let text = if decimals == 0 {
            whole.to_string()
        } else {
            let scale = 10u128.pow(decimals);
            let scaled = (u128::from(self.0) * scale) >> shift;
            let width = decimals as usize;
            let text = format!("{}.{:0width$}", scaled / scale, scaled % scale);
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        f.pad(&format!("{text}{unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_parse_as_docker_parses_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512M", 512 << 20),
            ("512mb", 512 << 20),
            ("512MiB", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("2 g", 2 << 30),
            ("10b", 10),
            ("1t", 1 << 40),
            ("0.5k", 512),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1x",
            "1.2.3",
            "1..",
            "1.",
            ".5",
            "1gg",
            "99999999999999999999",
            "99999999P",
            "1 2",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_four_digits_at_most() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1 << 30, "1GiB"),
            (512 << 20, "512MiB"),
            (3 << 29, "1.5GiB"),
            (1 << 40, "1TiB"),
            (1_288_490_188, "1.199GiB"),
            (1023 << 20, "1023MiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn plain_bytes_round_trip(n: u64) {
            prop_assert_eq!(n.to_string().parse::<ByteSize>().unwrap().bytes(), n);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,24}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
