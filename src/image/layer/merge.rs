//! The entries of a layer, merged into one tree: later ones over earlier ones, whiteouts beside
//! them.
//!
//! Rules:
//! - A directory on a directory changes its owner, permissions, times and attributes and keeps its
//!   entries. Everything else replaces what was there, with all that lies below.
//! - A parent that no entry names is a directory of root, 0755, time 0; its entry may come later.
//! - A whiteout hides what *lower* layers have: it never removes an entry of this layer, before or
//!   after it (OCI image-spec, layer.md). Where a directory of this layer stands in the place of a
//!   whiteout, the directory is opaque.
//! - Links are never followed: an entry below a symbolic link is refused.

use std::collections::HashSet;

use super::super::erofs::{Attributes, Kind, Node, NodeId, Tree};
use super::{Limits, Refusal};

/// How the names of whiteouts begin.
const WHITEOUT: &[u8] = b".wh.";
/// How the names begin that AUFS kept for itself; they mean nothing elsewhere.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// Permissions of a directory that no entry names.
const IMPLICIT_DIRECTORY: u16 = 0o755;

/// Memory that a name takes beside its bytes, with its place in a directory and its box.
const NAME_OVERHEAD: usize = 32;

/// Whether an entry at this path is not a file but a mark of the layer format.
pub(super) fn is_marker(path: &[&[u8]]) -> bool {
    path.iter().any(|name| name.starts_with(WHITEOUT))
}

/// The tree of a layer, and what it may still grow by.
#[derive(Debug)]
pub(super) struct Layer {
    tree: Tree,
    opaque: HashSet<NodeId>,
    limits: Limits,
    left: Limits,
}

impl Layer {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            tree: Tree::new(implicit()),
            opaque: HashSet::new(),
            limits,
            left: limits,
        }
    }

    /// Counts bytes of file data.
    pub(super) fn charge_bytes(&mut self, bytes: u64) -> Result<(), Refusal> {
        let left = self.left.max_bytes.checked_sub(bytes);
        self.left.max_bytes = left.ok_or(Refusal::TooManyBytes(self.limits.max_bytes))?;
        Ok(())
    }

    /// Puts a node at a path.
    pub(super) fn place(&mut self, path: &[&[u8]], node: Node) -> Result<(), Refusal> {
        let Some((name, parents)) = path.split_last() else {
            let Kind::Directory(_) = node.kind else {
                return Err(Refusal::RootNotDirectory);
            };
            return self.update(Tree::ROOT, node.attributes);
        };
        let parent = self.directory(parents)?;
        let existing = self.tree.child(parent, name);
        if !matches!(node.kind, Kind::Directory(_)) {
            return self.insert(parent, name, node).map(drop);
        }
        match existing {
            Some(id) if self.is_directory(id) => self.update(id, node.attributes),
            Some(_) => self.insert_opaque(parent, name, node).map(drop),
            None => self.insert(parent, name, node).map(drop),
        }
    }

    /// Gives the file at `target` a second name.
    pub(super) fn hard_link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<(), Refusal> {
        let id = self.find(target).ok_or(Refusal::LinkTargetMissing)?;
        if self.is_directory(id) {
            return Err(Refusal::LinkToDirectory);
        }
        if path == target {
            return Ok(());
        }
        let (name, parents) = path.split_last().ok_or(Refusal::RootNotDirectory)?;
        let parent = self.directory(parents)?;
        self.charge_name(name)?;
        self.tree.link(parent, name, id);
        Ok(())
    }

    /// Applies a whiteout or an opaque mark; drops what AUFS kept for itself.
    pub(super) fn marker(&mut self, path: &[&[u8]]) -> Result<(), Refusal> {
        let (name, parents) = path.split_last().ok_or(Refusal::BadWhiteout)?;
        if parents.iter().any(|name| name.starts_with(AUFS)) {
            return Ok(());
        }
        if is_marker(parents) {
            return Err(Refusal::BadWhiteout);
        }
        if *name == OPAQUE {
            let directory = self.directory(parents)?;
            self.opaque.insert(directory);
            return Ok(());
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = name.strip_prefix(WHITEOUT).unwrap_or_default();
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Refusal::BadWhiteout);
        }
        let parent = self.directory(parents)?;
        match self.tree.child(parent, hidden) {
            Some(id) if self.is_directory(id) => {
                self.opaque.insert(id);
                Ok(())
            }
            Some(_) => Ok(()),
            None => self.insert(parent, hidden, whiteout()).map(drop),
        }
    }

    /// The finished tree.
    pub(super) fn into_tree(mut self) -> Result<Tree, Refusal> {
        let (name, value) = OPAQUE_XATTR;
        for id in self.opaque {
            let node = self.tree.node_mut(id);
            node.attributes.xattrs.add(name, value)?;
        }
        Ok(self.tree)
    }

    /// The directory at a path, made with its parents where nothing is there.
    fn directory(&mut self, path: &[&[u8]]) -> Result<NodeId, Refusal> {
        let mut at = Tree::ROOT;
        for name in path {
            at = match self.tree.child(at, name) {
                None => self.insert(at, name, Node::directory(implicit()))?,
                Some(id) => match self.tree.node(id).kind {
                    Kind::Directory(_) => id,
                    Kind::Character(0) => {
                        self.insert_opaque(at, name, Node::directory(implicit()))?
                    }
                    Kind::Symlink(_) => return Err(Refusal::BelowSymlink),
                    _ => return Err(Refusal::BelowFile),
                },
            };
        }
        Ok(at)
    }

    fn find(&self, path: &[&[u8]]) -> Option<NodeId> {
        let found = path
            .iter()
            .try_fold(Tree::ROOT, |at, name| self.tree.child(at, name))?;
        // A whiteout is the absence of a file.
        (!matches!(self.tree.node(found).kind, Kind::Character(0))).then_some(found)
    }

    fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.tree.node(id).kind, Kind::Directory(_))
    }

    fn update(&mut self, id: NodeId, attributes: Attributes) -> Result<(), Refusal> {
        self.charge_metadata(attributes.xattrs.len())?;
        self.tree.node_mut(id).attributes = attributes;
        Ok(())
    }

    fn insert_opaque(
        &mut self,
        parent: NodeId,
        name: &[u8],
        node: Node,
    ) -> Result<NodeId, Refusal> {
        let id = self.insert(parent, name, node)?;
        self.opaque.insert(id);
        Ok(id)
    }

    fn insert(&mut self, parent: NodeId, name: &[u8], node: Node) -> Result<NodeId, Refusal> {
        self.charge_name(name)?;
        let content = match &node.kind {
            Kind::File(content) | Kind::Symlink(content) => content.heap_bytes(),
            _ => 0,
        };
        self.charge_metadata(node.attributes.xattrs.len() + content)?;
        let many = Refusal::TooManyEntries(self.limits.max_entries);
        let id = self.tree.add(node).ok_or(many)?;
        self.tree.link(parent, name, id);
        Ok(id)
    }

    fn charge_name(&mut self, name: &[u8]) -> Result<(), Refusal> {
        let many = Refusal::TooManyEntries(self.limits.max_entries);
        self.left.max_entries = self.left.max_entries.checked_sub(1).ok_or(many)?;
        self.charge_metadata(name.len() + NAME_OVERHEAD)
    }

    fn charge_metadata(&mut self, bytes: usize) -> Result<(), Refusal> {
        let left = self.left.max_metadata_bytes.checked_sub(bytes as u64);
        let much = Refusal::TooMuchMetadata(self.limits.max_metadata_bytes);
        self.left.max_metadata_bytes = left.ok_or(much)?;
        Ok(())
    }
}

fn implicit() -> Attributes {
    Attributes {
        permissions: IMPLICIT_DIRECTORY,
        ..Attributes::default()
    }
}

/// What overlayfs takes for a deleted name: a character device 0:0.
fn whiteout() -> Node {
    Node {
        attributes: Attributes::default(),
        kind: Kind::Character(0),
    }
}
