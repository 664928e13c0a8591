//! Tells a bundle from the tar of a root file system, by the names of its entries.
//!
//! ```text
//!   etc/, usr/, boot/vmlinuz ...        a root file system, at the first such name
//!   no such name up to the end, and
//!     oci-layout or manifest.json       a bundle
//!     neither                           a root file system all the same
//! ```
//! So a root file system is told after an entry or two, whichever program wrote it, and a bundle may
//! have its members in any order and by any names.
//!
//! Invariant: the members of a bundle have plain names, each once.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::io::Read;

use super::error::{MemberRefusal, Reason};
use crate::image::boot_files::BootFile;
use crate::image::layer::{Archive, Entry, EntryKind, EntryName, InodeKind, components};

/// More entries than any bundle has: some 50 images of 127 layers, three members each. Names have at most
/// 4 KiB, so that hostile ones take at most 80 MB of memory.
const MAX_MEMBERS: usize = 20_000;

/// Links to links that are followed; Docker needs one.
const MAX_LINKS: usize = 8;

/// What stands at the top of a root file system, and of no bundle (FHS 3.0; `.dockerenv` is the first
/// entry that `docker export` writes).
const TOP: [&[u8]; 23] = [
    b".dockerenv",
    b"bin",
    b"boot",
    b"dev",
    b"etc",
    b"home",
    b"lib",
    b"lib32",
    b"lib64",
    b"libx32",
    b"lost+found",
    b"media",
    b"mnt",
    b"opt",
    b"proc",
    b"root",
    b"run",
    b"sbin",
    b"srv",
    b"sys",
    b"tmp",
    b"usr",
    b"var",
];

/// What a tar is.
#[derive(Debug)]
pub(super) enum Sorted {
    Bundle(Members),
    /// One layer. The stream may have been read to any point.
    Tar,
}

/// The members of a bundle, by name.
#[derive(Debug, Default)]
pub(super) struct Members(HashMap<Vec<u8>, Member>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// Another name of what has this one.
    Link(Vec<u8>),
    Folder,
}

/// Reads a tar as far as it takes to tell what it is.
pub(super) fn sort(stream: &mut dyn Read) -> Result<Sorted, Reason> {
    let mut archive = Archive::new(stream);
    let mut members = Members::default();
    let mut refused = None;
    while let Some(entry) = archive.next_entry()? {
        if members.0.len() == MAX_MEMBERS || is_of_a_root(&entry.path) {
            return Ok(Sorted::Tar);
        }
        let added = members.add(&entry, archive.offset());
        // What no bundle may have, a root file system may.
        refused = refused.or(added.err().map(|source| refusal(&entry.path, source)));
    }
    archive.drain()?;
    if !members.is_bundle() {
        return Ok(Sorted::Tar);
    }
    match refused {
        Some(refused) => Err(refused),
        None => Ok(Sorted::Bundle(members)),
    }
}

fn refusal(name: &[u8], source: MemberRefusal) -> Reason {
    Reason::Member {
        entry: EntryName::new(name),
        source,
    }
}

fn is_of_a_root(path: &[u8]) -> bool {
    let Ok(path) = components(path) else {
        return false;
    };
    path.first().is_some_and(|top| TOP.contains(top)) || BootFile::of(&path).is_some()
}

impl Members {
    fn add(&mut self, entry: &Entry, offset: u64) -> Result<(), MemberRefusal> {
        let path = components(&entry.path)?;
        let member = match entry.kind {
            EntryKind::Inode(InodeKind::Directory) => Member::Folder,
            EntryKind::Inode(InodeKind::File) if entry.sparse.is_some() => {
                return Err(MemberRefusal::Sparse);
            }
            EntryKind::Inode(InodeKind::File) => Member::File {
                offset,
                size: entry.size,
            },
            EntryKind::Inode(InodeKind::Symlink) => Member::Link(symlink(&path, &entry.link)?),
            EntryKind::HardLink => {
                let target = components(&entry.link).map_err(|_| MemberRefusal::LinkOut)?;
                Member::Link(target.join(&b'/'))
            }
            EntryKind::Inode(_) => return Err(MemberRefusal::NoFile),
        };
        match self.0.entry(path.join(&b'/')) {
            Place::Vacant(place) => {
                place.insert(member);
                Ok(())
            }
            Place::Occupied(there)
                if *there.get() == Member::Folder && member == Member::Folder =>
            {
                Ok(())
            }
            Place::Occupied(_) => Err(MemberRefusal::Twice),
        }
    }

    fn is_bundle(&self) -> bool {
        let names = [super::oci::LAYOUT, super::docker::MANIFEST];
        names
            .iter()
            .any(|name| self.0.contains_key(name.as_bytes()))
    }

    /// Where the data of a member is, and its size in bytes; none if there is no such member.
    pub(super) fn find(&self, name: &str) -> Result<Option<(u64, u64)>, Reason> {
        let refuse = |source| refusal(name.as_bytes(), source);
        let path = components(name.as_bytes()).map_err(|error| refuse(error.into()))?;
        let mut path = path.join(&b'/');
        for _ in 0..=MAX_LINKS {
            match self.0.get(&path) {
                None => return Ok(None),
                Some(Member::File { offset, size }) => return Ok(Some((*offset, *size))),
                Some(Member::Folder) => return Err(refuse(MemberRefusal::NoFile)),
                Some(Member::Link(target)) => path.clone_from(target),
            }
        }
        Err(refuse(MemberRefusal::LinkLoop))
    }
}

/// The member that a symbolic link at `path` means.
fn symlink(path: &[&[u8]], target: &[u8]) -> Result<Vec<u8>, MemberRefusal> {
    let folder = path.split_last().map_or(&[][..], |(_, folder)| folder);
    if target.starts_with(b"/") {
        return Err(MemberRefusal::LinkOut);
    }
    let whole = [folder, &[target]].concat().join(&b'/');
    let whole = components(&whole).map_err(|_| MemberRefusal::LinkOut)?;
    Ok(whole.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_within_and_refused_outside() {
        type Row<'a> = (&'a [&'a [u8]], &'a [u8], Option<&'a [u8]>);
        let table: [Row<'_>; 7] = [
            (
                &[b"a", b"layer.tar"],
                b"../b/layer.tar",
                Some(b"b/layer.tar"),
            ),
            (&[b"x"], b"y", Some(b"y")),
            (&[b"a", b"x"], b"./y", Some(b"a/y")),
            (&[b"a", b"x"], b"../../y", None),
            (&[b"x"], b"..", None),
            (&[b"x"], b"/etc/passwd", None),
            (&[b"x"], b"a\0b", None),
        ];
        for (path, target, expected) in table {
            let found = symlink(path, target).ok();
            assert_eq!(found.as_deref(), expected, "{}", target.escape_ascii());
        }
    }

    #[test]
    fn root_file_systems_are_told_by_what_stands_at_their_top() {
        let table: [(&[u8], bool); 9] = [
            (b"./", false),
            (b"./etc/", true),
            (b"/usr/bin/env", true),
            (b"vmlinuz", true),
            (b"initrd.img-6.1", true),
            (b"blobs/sha256/", false),
            (b"manifest.json", false),
            (b"../etc/passwd", false),
            (b"bin.tar", false),
        ];
        for (path, expected) in table {
            assert_eq!(is_of_a_root(path), expected, "{}", path.escape_ascii());
        }
    }
}
