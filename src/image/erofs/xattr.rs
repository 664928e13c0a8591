//! Extended attributes of one inode, kept in the form in which they go to disk.
//!
//! ```text
//!  e_name_len u8 │ e_name_index u8 │ e_value_size u16 │ name without its prefix │ value │ pad to 4
//! ```
//! (`struct erofs_xattr_entry`.) Invariant: at most [`MAX_BYTES`], a multiple of 4.

use std::collections::BTreeMap;

/// The prefixes that the format can name (`EROFS_XATTR_INDEX_*`).
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Attributes of one inode in bytes, names and values: what Linux lets a single value take
/// (`XATTR_SIZE_MAX`). The format itself could hold 256 KiB.
const MAX_BYTES: usize = 64 << 10;

/// Why attributes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// A name that Linux could not list.
    #[error("the name of an extended attribute is empty, has a NUL or more than 255 bytes")]
    Name,
    /// A value or all of them together.
    #[error("its extended attributes take more than 64 KiB")]
    TooLarge,
}

/// Encoded attributes of an inode; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs {
    encoded: Box<[u8]>,
}

impl Xattrs {
    /// Encodes attributes by full name (`security.capability`). A name outside the namespaces of
    /// Linux (`com.apple.provenance`, which archives made on macOS carry) is left out, because no
    /// Linux file system can hold it.
    ///
    /// # Errors
    /// A name or the whole is longer than Linux allows.
    pub fn encode(attributes: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Self, XattrError> {
        let mut encoded = Vec::new();
        for (name, value) in attributes {
            append(&mut encoded, name, value)?;
        }
        Ok(Self {
            encoded: encoded.into(),
        })
    }

    /// Adds one attribute, which must not be there yet.
    ///
    /// # Errors
    /// As [`Xattrs::encode`].
    pub fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), XattrError> {
        let mut encoded = self.encoded.to_vec();
        append(&mut encoded, name, value)?;
        self.encoded = encoded.into();
        Ok(())
    }

    /// The entries, without the header before them.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.encoded
    }

    /// Memory they take, in bytes.
    pub fn len(&self) -> usize {
        self.encoded.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }
}

fn append(encoded: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), XattrError> {
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err(XattrError::Name);
    }
    let Some((suffix, index)) = split(name) else {
        return Ok(());
    };
    let value_size = u16::try_from(value.len()).map_err(|_| XattrError::TooLarge)?;
    // The suffix of a name of at most 255 bytes.
    encoded.push(u8::try_from(suffix.len()).map_err(|_| XattrError::Name)?);
    encoded.push(index);
    encoded.extend(value_size.to_le_bytes());
    encoded.extend(suffix);
    encoded.extend(value);
    encoded.resize(encoded.len().next_multiple_of(4), 0);
    if encoded.len() > MAX_BYTES {
        return Err(XattrError::TooLarge);
    }
    Ok(())
}

/// The part of a name that is stored, and the number of its prefix.
fn split(name: &[u8]) -> Option<(&[u8], u8)> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let suffix = name.strip_prefix(*prefix)?;
        // A namespace needs a name after it; the two ACLs are names by themselves.
        (suffix.is_empty() != prefix.ends_with(b".")).then_some((suffix, *index))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(name: &[u8], value: &[u8]) -> Result<Xattrs, XattrError> {
        Xattrs::encode(&BTreeMap::from([(name.to_vec(), value.to_vec())]))
    }

    #[test]
    fn an_entry_is_padded_to_four_bytes() {
        let xattrs = encode(b"user.a", b"xy").unwrap();
        assert_eq!(xattrs.bytes(), b"\x01\x01\x02\x00axy\x00");
        let acl = encode(b"system.posix_acl_access", b"1234").unwrap();
        assert_eq!(acl.bytes(), b"\x00\x02\x04\x001234");
    }

    #[test]
    fn names_that_linux_cannot_hold_are_left_out_and_broken_ones_refused() {
        for name in [&b"com.apple.provenance"[..], b"user.", b"system.other"] {
            assert!(encode(name, b"x").unwrap().is_empty());
        }
        for name in [&b""[..], b"user.a\0b", &[b'u'; 256]] {
            assert_eq!(encode(name, b"x"), Err(XattrError::Name));
        }
        assert_eq!(encode(b"user.a", &[0; 65_536]), Err(XattrError::TooLarge));
        assert!(encode(b"user.a", &[0; 65_000]).is_ok());
    }
}
