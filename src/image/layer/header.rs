//! The 512-byte header of a tar entry. Pure.
//!
//! ```text
//!  0 name │ 100 mode │ 108 uid │ 116 gid │ 124 size │ 136 mtime │ 148 checksum │ 156 type
//!  157 link │ 257 magic │ 265 owner names │ 329 major │ 337 minor │ 345 prefix (POSIX)
//!  old GNU sparse: 386 four segments │ 482 more follow │ 483 real size
//! ```
//! Source: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

use super::Refusal;
use super::sparse::Segment;

/// Size of a header, and what data is padded to, in bytes.
pub(super) const RECORD: usize = 512;

/// The part of an old GNU sparse map that stands in a header.
pub(super) struct GnuSparse {
    /// Size of the file, holes included.
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
    /// Whether a record of further segments follows.
    pub(super) has_more: bool,
}

/// Whether a stream that begins so is a tar.
pub(in crate::image) fn is_header(first: &[u8]) -> bool {
    let record = first.first_chunk::<RECORD>();
    record.is_some_and(|record| Header::parse(record).is_ok())
}

/// One header.
pub(super) struct Header<'a>(&'a [u8; RECORD]);

impl<'a> Header<'a> {
    /// Checks a record's checksum.
    pub(super) fn parse(record: &'a [u8; RECORD]) -> Result<Self, Refusal> {
        let stored = number(&record[148..156]).ok_or(Refusal::Checksum)?;
        // The checksum field itself counts as 8 spaces.
        let counted = |i: usize, byte: u8| if (148..156).contains(&i) { b' ' } else { byte };
        let bytes = record.iter().enumerate().map(|(i, b)| counted(i, *b));
        let unsigned: i64 = bytes.clone().map(i64::from).sum();
        // Some old programs summed signed bytes.
        let signed: i64 = bytes.map(|b| i64::from(b.cast_signed())).sum();
        if stored == unsigned || stored == signed {
            Ok(Self(record))
        } else {
            Err(Refusal::Checksum)
        }
    }

    /// The name, with the POSIX prefix before it.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if self.is_posix() {
            // The star variant keeps times in the last 24 bytes.
            let end = if &self.0[508..512] == b"tar\0" {
                476
            } else {
                500
            };
            text(&self.0[345..end])
        } else {
            b""
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> &'a [u8] {
        text(&self.0[157..257])
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The permission bits; type bits, which some programs add, are cut off.
    pub(super) fn permissions(&self) -> Result<u16, Refusal> {
        let mode = number(&self.0[100..108]).ok_or(Refusal::Number("mode"))?;
        u16::try_from(mode & 0o7777).map_err(|_| Refusal::Number("mode"))
    }

    pub(super) fn uid(&self) -> Result<i64, Refusal> {
        number(&self.0[108..116]).ok_or(Refusal::Number("owner"))
    }

    pub(super) fn gid(&self) -> Result<i64, Refusal> {
        number(&self.0[116..124]).ok_or(Refusal::Number("group"))
    }

    /// Bytes of data that follow.
    pub(super) fn size(&self) -> Result<u64, Refusal> {
        unsigned(&self.0[124..136], "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, Refusal> {
        number(&self.0[136..148]).ok_or(Refusal::Number("time"))
    }

    /// Major and minor number; 0 in headers older than POSIX.
    pub(super) fn device(&self) -> Result<(u32, u32), Refusal> {
        if !self.is_posix() && !self.is_gnu() {
            return Ok((0, 0));
        }
        let part = |field: &[u8]| {
            let value = number(field).ok_or(Refusal::Number("device number"))?;
            u32::try_from(value).map_err(|_| Refusal::Number("device number"))
        };
        Ok((part(&self.0[329..337])?, part(&self.0[337..345])?))
    }

    pub(super) fn gnu_sparse(&self) -> Result<GnuSparse, Refusal> {
        Ok(GnuSparse {
            size: unsigned(&self.0[483..495], "sparse size")?,
            segments: gnu_segments(&self.0[386..482])?,
            has_more: self.0[482] != 0,
        })
    }

    fn is_posix(&self) -> bool {
        &self.0[257..263] == b"ustar\0"
    }

    fn is_gnu(&self) -> bool {
        &self.0[257..265] == b"ustar  \0"
    }
}

/// Old GNU sparse: a record of further segments, and whether another follows.
pub(super) fn gnu_sparse_more(record: &[u8; RECORD]) -> Result<(Vec<Segment>, bool), Refusal> {
    Ok((gnu_segments(&record[..504])?, record[504] != 0))
}

/// Pairs of 12-byte fields, offset and length, up to an empty one.
fn gnu_segments(fields: &[u8]) -> Result<Vec<Segment>, Refusal> {
    fields
        .chunks_exact(24)
        .take_while(|pair| pair[0] != 0)
        .map(|pair| {
            Ok(Segment {
                offset: unsigned(&pair[..12], "sparse offset")?,
                len: unsigned(&pair[12..], "sparse length")?,
            })
        })
        .collect()
}

fn unsigned(field: &[u8], what: &'static str) -> Result<u64, Refusal> {
    number(field)
        .and_then(|value| u64::try_from(value).ok())
        .ok_or(Refusal::Number(what))
}

/// A numeric field: octal text, or (GNU) a big-endian two's complement number of which the first
/// bit is 1 as a mark. An empty field is 0. None if it is neither or does not fit.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // The bit after the mark is the sign.
        let head = i64::from(((first & 0x7f) << 1).cast_signed() >> 1);
        return field[1..].iter().try_fold(head, |value, byte| {
            value.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let text = text(field).trim_ascii();
    text.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// What stands before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_never_wrap() {
        let table: [(&[u8], Option<i64>); 12] = [
            (b"0000644\0", Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"0000648\0", None),
            (b"-0000001", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
                Some(-2),
            ),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, expected) in table {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }
}
