//! Ethernet addresses, written `02:00:00:ab:cd:ef`.

use std::fmt;
use std::str::FromStr;

use super::serde_as_string;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

/// Why a text is not an Ethernet address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a MAC address: write six pairs of hex digits, aa:bb:cc:dd:ee:ff")]
pub struct InvalidMac(String);

impl Mac {
    /// The address with these six bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes in transmission order.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(pair.ok_or_else(invalid)?, 16).map_err(|_| invalid())?;
        }
        if pairs.next().is_some() {
            return Err(invalid());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

serde_as_string!(Mac);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_round_trips_through_its_text() {
        let mac: Mac = "4e:08:BA:c1:62:f8".parse().unwrap();
        assert_eq!(mac.bytes(), [0x4e, 0x08, 0xba, 0xc1, 0x62, 0xf8]);
        assert_eq!(mac.to_string(), "4e:08:ba:c1:62:f8");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "4e:08:ba:c1:62",
            "4e:08:ba:c1:62:f8:00",
            "4e:08:ba:c1:62:+8",
            "4e-08-ba-c1-62-f8",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
