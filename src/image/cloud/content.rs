//! What a file is, by its first bytes.
//!
//! ```text
//!    0       "QFI\xfb" qcow2 | gzip, xz, zstd: unpack and look again | other formats, by name
//!  257       tar           32769   ISO 9660
//!  510       55 aa         MBR, and the one that protects a GPT
//!  512       "EFI PART"    GPT
//! 1080       53 ef         ext2, ext3, ext4 without a partition table
//!  end -512  "conectix"    a VHD of fixed size: a raw disk and a footer
//! ```
//! Invariant: what is called raw has a partition table or a file system where a disk has it. Nothing that is
//! named otherwise is ever opened as a disk.

use std::fmt;

use crate::image::layer;

/// Bytes that tell all that can be told; the farthest sign is that of ISO 9660.
pub const HEAD: usize = 36 << 10;

/// Bytes at the end of a VHD that describe it (Virtual Hard Disk Image Format Specification 1.0).
pub(super) const FOOTER: usize = 512;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// A disk image as QEMU has them.
    Qcow2,
    /// A disk, byte by byte.
    Raw,
    /// Something compressed.
    Packed(Packing),
    /// Nothing that can be used as a disk.
    Foreign(Foreign),
}

/// How something is compressed that can be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// RFC 1952.
    Gzip,
    /// The .xz file format 1.2.
    Xz,
    /// RFC 8878.
    Zstd,
}

/// What is no disk, or a disk of a kind that is not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Display` says what each is")]
pub enum Foreign {
    Empty,
    Zeros,
    WebPage,
    Xml,
    Text,
    Tar,
    Zip,
    SevenZip,
    Rar,
    Bzip2,
    Lz4,
    Lzip,
    Vmdk,
    Vhd,
    Vhdx,
    Vdi,
    Qed,
    Iso,
    Luks,
    Unknown,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        })
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Empty => "an empty file",
            Self::Zeros => "nothing but zeros as far as one has to look",
            Self::WebPage => "a web page",
            Self::Xml => "an XML document",
            Self::Text => "a text",
            Self::Tar => "a tar archive",
            Self::Zip => "a zip archive",
            Self::SevenZip => "a 7z archive",
            Self::Rar => "a RAR archive",
            Self::Bzip2 => "compressed by bzip2",
            Self::Lz4 => "compressed by lz4",
            Self::Lzip => "compressed by lzip",
            Self::Vmdk => "a disk of VMware (VMDK)",
            Self::Vhd => "a disk of Virtual PC (VHD)",
            Self::Vhdx => "a disk of Hyper-V (VHDX)",
            Self::Vdi => "a disk of VirtualBox (VDI)",
            Self::Qed => "a QED disk",
            Self::Iso => "an ISO 9660 image, which installs a system and has none",
            Self::Luks => "an encrypted volume (LUKS)",
            Self::Unknown => "of no kind that is known",
        })
    }
}

/// Offset, what stands there, and what that means; the first that fits counts.
const SIGNS: [(usize, &[u8], Sniffed); 24] = [
    (0, b"QFI\xfb", Sniffed::Qcow2),
    (0, b"\x1f\x8b", Sniffed::Packed(Packing::Gzip)),
    (0, b"\xfd7zXZ\0", Sniffed::Packed(Packing::Xz)),
    (0, b"\x28\xb5\x2f\xfd", Sniffed::Packed(Packing::Zstd)),
    (0, b"PK\x03\x04", Sniffed::Foreign(Foreign::Zip)),
    (0, b"PK\x05\x06", Sniffed::Foreign(Foreign::Zip)),
    (
        0,
        b"7z\xbc\xaf\x27\x1c",
        Sniffed::Foreign(Foreign::SevenZip),
    ),
    (0, b"Rar!\x1a\x07", Sniffed::Foreign(Foreign::Rar)),
    (0, b"BZh", Sniffed::Foreign(Foreign::Bzip2)),
    (0, b"\x04\x22\x4d\x18", Sniffed::Foreign(Foreign::Lz4)),
    (0, b"LZIP", Sniffed::Foreign(Foreign::Lzip)),
    (0, b"KDMV", Sniffed::Foreign(Foreign::Vmdk)),
    (0, b"COWD", Sniffed::Foreign(Foreign::Vmdk)),
    (0, b"# Disk DescriptorFile", Sniffed::Foreign(Foreign::Vmdk)),
    (0, b"conectix", Sniffed::Foreign(Foreign::Vhd)),
    (0, b"vhdxfile", Sniffed::Foreign(Foreign::Vhdx)),
    (0, b"QED\0", Sniffed::Foreign(Foreign::Qed)),
    (0, b"LUKS\xba\xbe", Sniffed::Foreign(Foreign::Luks)),
    (64, b"\x7f\x10\xda\xbe", Sniffed::Foreign(Foreign::Vdi)),
    // Of POSIX, for a header whose checksum is wrong or that is not whole.
    (257, b"ustar", Sniffed::Foreign(Foreign::Tar)),
    (32769, b"CD001", Sniffed::Foreign(Foreign::Iso)),
    (510, b"\x55\xaa", Sniffed::Raw),
    (512, b"EFI PART", Sniffed::Raw),
    (1080, b"\x53\xef", Sniffed::Raw),
];

/// What a file is that begins with `head`: all of a short one, else [`HEAD`] bytes.
pub fn sniff(head: &[u8]) -> Sniffed {
    if head.is_empty() {
        return Sniffed::Foreign(Foreign::Empty);
    }
    if layer::is_header(head) {
        return Sniffed::Foreign(Foreign::Tar);
    }
    if is_skippable_frame(head) {
        return Sniffed::Packed(Packing::Zstd);
    }
    let at = |offset| head.get(offset..).unwrap_or_default();
    let sign = SIGNS
        .iter()
        .find(|(offset, sign, _)| at(*offset).starts_with(sign));
    match sign {
        Some((_, _, found)) => *found,
        None => Sniffed::Foreign(prose(head)),
    }
}

/// What a file is that begins and ends so.
pub(super) fn sniff_ends(head: &[u8], footer: &[u8]) -> Sniffed {
    match sniff(head) {
        Sniffed::Raw if footer.starts_with(b"conectix") => Sniffed::Foreign(Foreign::Vhd),
        found => found,
    }
}

/// A zstd stream may begin with a frame to be skipped, 0x184D2A50 to 0x184D2A5F (RFC 8878, section 3.1.2).
fn is_skippable_frame(head: &[u8]) -> bool {
    head.get(1..4) == Some(&[0x2a, 0x4d, 0x18]) && head[0] >> 4 == 5
}

/// What is left: something for people, or nobody knows what.
fn prose(head: &[u8]) -> Foreign {
    if head.iter().all(|byte| *byte == 0) {
        return Foreign::Zeros;
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text = text.trim_ascii_start();
    let start = text[..text.len().min(512)].to_ascii_lowercase();
    let begins = |words: &[&str]| words.iter().any(|word| start.starts_with(word.as_bytes()));
    let names_html = start.windows(5).any(|word| word == b"<html");
    if begins(&["<!doctype html", "<html", "<head", "<body"]) || (begins(&["<"]) && names_html) {
        return Foreign::WebPage;
    }
    if begins(&["<?xml", "<!--", "<!doctype"]) {
        return Foreign::Xml;
    }
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~');
    match start.iter().all(is_text) {
        true => Foreign::Text,
        false => Foreign::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::tar_of;

    /// Noise with something at an offset.
    fn with(offset: usize, sign: &[u8]) -> Vec<u8> {
        let mut head = crate::image::fixture::noise(7, HEAD);
        head[offset..offset + sign.len()].copy_from_slice(sign);
        head
    }

    #[test]
    fn each_sign_tells_what_it_stands_for() {
        assert_eq!(sniff(&with(0, b"")), Sniffed::Foreign(Foreign::Unknown));
        for (offset, sign, expected) in SIGNS {
            assert_eq!(sniff(&with(offset, sign)), expected, "{sign:?}");
            let short = with(offset, sign)[..offset + sign.len()].to_vec();
            assert_eq!(sniff(&short), expected, "{sign:?}, and no more");
            let less = &short[..short.len() - 1];
            assert_ne!(sniff(less), Sniffed::Raw, "{sign:?}, not whole");
        }
    }

    #[test]
    fn what_is_for_people_is_told_from_what_is_for_machines() {
        for (text, expected) in [
            (&b""[..], Foreign::Empty),
            (b"\n <!DOCTYPE HTML><p>", Foreign::WebPage),
            (b"\xef\xbb\xbf<html lang=en>", Foreign::WebPage),
            (b"<?xml version=\"1.0\"?><html>", Foreign::WebPage),
            (b"<!-- hello --><HTML>", Foreign::WebPage),
            (b"<?xml version=\"1.0\"?><Error>", Foreign::Xml),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                Foreign::Text,
            ),
            (b"{\"error\": 1}", Foreign::Text),
            (b"\0\0\0", Foreign::Zeros),
            (b"abc\0", Foreign::Unknown),
        ] {
            assert_eq!(sniff(text), Sniffed::Foreign(expected), "{text:?}");
        }
    }

    #[test]
    fn archives_and_hybrid_images_are_no_disks_though_they_may_look_like_one() {
        assert_eq!(
            sniff(&tar_of(&[("a", &[1; 9])])),
            Sniffed::Foreign(Foreign::Tar)
        );
        // What can be written to a stick has a partition table, too.
        let mut hybrid = with(32769, b"CD001");
        hybrid[510..512].copy_from_slice(b"\x55\xaa");
        assert_eq!(sniff(&hybrid), Sniffed::Foreign(Foreign::Iso));
        let disk = with(510, b"\x55\xaa");
        assert_eq!(
            sniff_ends(&disk, b"conectix"),
            Sniffed::Foreign(Foreign::Vhd)
        );
        assert_eq!(sniff_ends(&disk, b"\0"), Sniffed::Raw);
        let mut skipped = with(0, &[0x53, 0x2a, 0x4d, 0x18]);
        skipped[510..512].copy_from_slice(b"\x55\xaa");
        assert_eq!(sniff(&skipped), Sniffed::Packed(Packing::Zstd));
    }
}
