//! PAX extended headers: records of `length key=value\n` before an entry. Pure.
//!
//! A value may hold any bytes, newlines too: only the length ends it. Source: POSIX.1-2017 `pax`,
//! "pax Extended Header"; GNU tar manual, "Storing Sparse Files"; `SCHILY.xattr.` is of star.

use std::collections::BTreeMap;

use super::super::erofs::Timestamp;
use super::Refusal;

/// What the records of one header say; later ones win.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: PaxSparse,
}

/// The records of GNU sparse files, in the formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `GNU.sparse.realsize`.
    pub(super) size: Option<u64>,
    /// 0.1: offset, length, offset, ... in decimal; 0.0: the same, one record a number.
    pub(super) map: Vec<u64>,
}

impl Pax {
    pub(super) fn parse(data: &[u8]) -> Result<Self, Refusal> {
        let mut pax = Self::default();
        for record in Records(data) {
            let (key, value) = record?;
            pax.record(key, value)?;
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            // overlayfs would take them as its own marks: a layer must not forge them.
            if !name.starts_with(b"trusted.overlay.") {
                self.xattrs.insert(name.to_vec(), value.to_vec());
            }
            return Ok(());
        }
        if value.is_empty() {
            // An empty value means: as if the record were not there.
            return Ok(());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.record(key, value);
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(unsigned(value, "size")?),
            b"uid" => self.uid = Some(signed(value, "owner")?),
            b"gid" => self.gid = Some(signed(value, "group")?),
            b"mtime" => self.mtime = Some(timestamp(value)?),
            // Owner names, access times, comments: nothing that an image holds.
            _ => {}
        }
        Ok(())
    }
}

impl PaxSparse {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        match key {
            b"major" => self.major = Some(unsigned(value, "sparse version")?),
            b"minor" => self.minor = Some(unsigned(value, "sparse version")?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(unsigned(value, "sparse size")?),
            b"offset" | b"numbytes" => {
                // The two alternate, offset first; anything else would pair wrongly.
                if (key == b"offset") != self.map.len().is_multiple_of(2) {
                    return Err(Refusal::Sparse("offsets and lengths do not alternate"));
                }
                self.map.push(unsigned(value, "sparse map")?);
            }
            b"map" => {
                self.map = value
                    .split(|byte| *byte == b',')
                    .map(|number| unsigned(number, "sparse map"))
                    .collect::<Result<_, _>>()?;
            }
            // numblocks: the map has its length.
            _ => {}
        }
        Ok(())
    }

    /// Whether the entry is a sparse file at all.
    pub(super) fn is_present(&self) -> bool {
        self.major.is_some() || self.size.is_some() || !self.map.is_empty()
    }
}

/// Checks a global header, which would hold for all later entries. None of the layer builders
/// writes one with an effect; tar programs differ on what it means, so one with an effect is
/// refused, and one with a comment (git) ignored.
pub(super) fn check_global(data: &[u8]) -> Result<(), Refusal> {
    for record in Records(data) {
        let (key, _) = record?;
        let is_harmless = matches!(key, b"comment" | b"atime" | b"ctime" | b"charset")
            || key.starts_with(b"hdrcharset");
        if !is_harmless {
            return Err(Refusal::Extension("a global header with an effect"));
        }
    }
    Ok(())
}

struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = take_record(&mut self.0).ok_or(Refusal::Extension("a record is broken"));
        if record.is_err() {
            self.0 = &[];
        }
        Some(record)
    }
}

fn take_record<'a>(data: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let space = data.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    let record = data.get(space + 1..length)?;
    let (last, record) = record.split_last()?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    *data = &data[length..];
    (*last == b'\n' && equals > 0).then_some((&record[..equals], &record[equals + 1..]))
}

fn unsigned(value: &[u8], what: &'static str) -> Result<u64, Refusal> {
    decimal(value).ok_or(Refusal::Number(what))
}

fn signed(value: &[u8], what: &'static str) -> Result<i64, Refusal> {
    let (is_negative, digits) = sign(value);
    let number = decimal(digits).and_then(|number| i64::try_from(number).ok());
    let number = number.ok_or(Refusal::Number(what))?;
    Ok(if is_negative { -number } else { number })
}

fn sign(value: &[u8]) -> (bool, &[u8]) {
    match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    }
}

/// Decimal digits and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds with a fraction of any length, of which nine digits count.
fn timestamp(value: &[u8]) -> Result<Timestamp, Refusal> {
    let wrong = Refusal::Number("time");
    let (is_negative, value) = sign(value);
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = decimal(parts.next().unwrap_or_default()).ok_or(wrong)?;
    let seconds = i64::try_from(seconds).map_err(|_| wrong)?;
    let mut nanoseconds = 0;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(wrong);
    }
    for place in 0..9 {
        let digit = fraction.get(place).map_or(0, |digit| digit - b'0');
        nanoseconds = nanoseconds * 10 + u32::from(digit);
    }
    Ok(match (is_negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds,
        },
        // Minus one and a half is half a second after minus two.
        (true, _) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_newlines_and_equals_signs() {
        let data = b"31 SCHILY.xattr.user.a=1\n=2\n\0\xff\n19 path=dir/file.c\n";
        let pax = Pax::parse(data).unwrap();
        assert_eq!(pax.xattrs[&b"user.a"[..]], b"1\n=2\n\0\xff");
        assert_eq!(pax.path.unwrap(), b"dir/file.c");
    }

    #[test]
    fn a_broken_record_is_refused() {
        for data in [
            &b"9 path=a\n x"[..],
            b"99 path=a\n",
            b"0 path=a\n",
            b"9 path=ab",
            b"-1 path=a\n",
            b" path=a\n",
            b"7 path\n",
            b"5 =a\n",
            b"99999999999999999999999 path=a\n",
        ] {
            assert!(Pax::parse(data).is_err(), "{}", data.escape_ascii());
        }
    }

    #[test]
    fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
        type Row<'a> = (&'a [u8], Option<(i64, u32)>);
        let table: [Row<'_>; 8] = [
            (b"1700000000.123456789", Some((1_700_000_000, 123_456_789))),
            (b"5", Some((5, 0))),
            (b"5.1234567899", Some((5, 123_456_789))),
            (b"-1.5", Some((-2, 500_000_000))),
            (b"-3", Some((-3, 0))),
            (b"1.x", None),
            (b".5", None),
            (b"9223372036854775808", None),
        ];
        for (value, expected) in table {
            let time = timestamp(value).ok();
            let time = time.map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(time, expected, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn overlayfs_marks_are_dropped() {
        let pax = Pax::parse(b"45 SCHILY.xattr.trusted.overlay.redirect=/x\n").err();
        assert_eq!(pax, Some(Refusal::Extension("a record is broken")));
        let pax = Pax::parse(b"44 SCHILY.xattr.trusted.overlay.redirect=/x\n").unwrap();
        assert!(pax.xattrs.is_empty());
    }
}
