//! Attacks on who reads a layer: what each is, its bytes, and what is said of it.

use super::super::Limits;
use super::support::*;

mod bombs;
mod entries;
mod fields;

/// What is said of what looks like an attack and is none: such entries mean something, and harm nobody.
pub(super) const ACCEPTED: &str = "accepted";

/// One attack.
pub(super) struct Attack {
    pub(super) what: &'static str,
    pub(super) tar: Vec<u8>,
    pub(super) limits: Limits,
    /// A part of the error's text, or [`ACCEPTED`].
    pub(super) sentence: &'static str,
}

/// All of them.
pub(super) fn attacks() -> Vec<Attack> {
    [
        entries::names(),
        entries::links(),
        entries::whiteouts(),
        entries::kinds(),
        fields::numbers(),
        fields::extensions(),
        fields::sparse_files(),
        bombs::bombs(),
        bombs::ends(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn attack(what: &'static str, tar: Vec<u8>, sentence: &'static str) -> Attack {
    Attack {
        what,
        tar,
        limits: Limits::default(),
        sentence,
    }
}

fn new() -> TarBuilder {
    TarBuilder::new()
}

/// A tar of one header, of which some bytes are others than any program writes.
fn raw(change: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut header = header(b"raw", b'0', 0);
    change(header.as_mut_bytes());
    header.set_cksum();
    new().record(&header, b"").end()
}

fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let records: [(&[u8], &[u8]); 1] = [(key.as_bytes(), value)];
    new().pax(&records).file("pax", b"").end()
}

/// An extension header of a kind, its content and the size that it says it has.
fn extension(kind: u8, size: u64, content: &[u8]) -> Vec<u8> {
    let header = header(b"ext", kind, size);
    new().record(&header, content).file("x", b"").end()
}
