//! The tree of an image while it is built: nodes by number, names in their directories.
//!
//! ```text
//!  nodes[0] root ── "bin" ─▶ nodes[1] directory ── "sh" ─▶ nodes[2] file ◀─ "dash" (a hard link)
//! ```
//! Invariants: node 0 is the root directory; a directory has one parent; a node that lost its last
//! name stays in `nodes` but is never reached, so it is not written.

use std::collections::BTreeMap;

use super::data::Content;
use super::xattr::Xattrs;

/// A node of one [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub(super) u32);

impl NodeId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A point in time, counted from 1970 in UTC; negative seconds lie before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What every inode has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The low 12 bits of `st_mode`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// What an inode is.
#[derive(Debug)]
pub enum Kind {
    /// A directory and the nodes it names.
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    /// A regular file.
    File(Content),
    /// A symbolic link; its content is the target.
    Symlink(Content),
    /// A character device, by [`device_number`]. 0 is an overlayfs whiteout.
    Character(u32),
    /// A block device, by [`device_number`].
    Block(u32),
    /// A named pipe.
    Fifo,
}

/// An inode.
#[derive(Debug)]
pub struct Node {
    /// Owner, permissions, time, extended attributes.
    pub attributes: Attributes,
    /// Type and content.
    pub kind: Kind,
}

impl Node {
    /// A directory without entries.
    pub fn directory(attributes: Attributes) -> Self {
        Self {
            attributes,
            kind: Kind::Directory(BTreeMap::new()),
        }
    }
}

/// The encoding of device numbers on disk (`new_encode_dev` of Linux): 12 bits of major, 20 of
/// minor. None if a number is larger.
pub fn device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Directories, names and inodes.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree of only a root directory.
    pub fn new(root: Attributes) -> Self {
        Self {
            nodes: vec![Node::directory(root)],
        }
    }

    /// The node of an id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The node of an id, to be changed.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Nodes that were ever added.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What `name` is in a directory; nothing in what is not a directory.
    pub fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(directory).kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// Adds a node without a name. None if there are 2^32 already.
    pub fn add(&mut self, node: Node) -> Option<NodeId> {
        let id = NodeId(u32::try_from(self.nodes.len()).ok()?);
        self.nodes.push(node);
        Some(id)
    }

    /// Names a node in a directory, in place of what had the name. Must not be used to give a
    /// directory a second name; does nothing in what is not a directory.
    pub fn link(&mut self, directory: NodeId, name: &[u8], node: NodeId) {
        if let Kind::Directory(children) = &mut self.node_mut(directory).kind {
            children.insert(name.into(), node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(device_number(0, 0), Some(0));
        assert_eq!(device_number(1, 3), Some(0x0103));
        assert_eq!(device_number(0xfff, 0xf_ffff), Some(u32::MAX));
        assert_eq!(device_number(259, 0x1_2345), Some(0x1231_0345));
        assert_eq!(device_number(0x1000, 0), None);
        assert_eq!(device_number(0, 1 << 20), None);
    }
}
