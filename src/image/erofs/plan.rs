//! Where every inode and directory goes: decided for the whole tree before anything is written,
//! because a directory names its entries by their place. Pure.
//!
//! ```text
//!  metadata   │ 32 B unused │ root │ entries of root ... │ entries of its first directory ... │
//! ```
//! Breadth first, names in order: what `ls -l` reads of a directory lies together.
//!
//! Invariants: an inode starts on a slot; its header does not cross a block, nor does an inline
//! tail with what stands before it; the root has nid 1 (nid 0 would be an inode number of 0, which
//! readdir of the C library skips).

use super::data::{DataWriter, Stored};
use super::format::{
    BLOCK, CLUSTER_HEADER, CLUSTER_INDEX, DirectoryLength, DirentType, INODE, SLOT, xattr_area,
};
use super::tree::{Kind, Node, NodeId, Tree};

/// Bytes that can stand inline beside an inode with these bytes of xattr entries.
pub(super) fn room_for_tail(xattr_bytes: usize) -> usize {
    BLOCK.saturating_sub(INODE + xattr_area(xattr_bytes))
}

/// The place of one node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Bytes from the start of the metadata; 0 if the node has no name and is not written.
    pub(super) offset: u64,
    pub(super) links: u32,
    /// Of a directory: the directory that names it.
    pub(super) parent: NodeId,
    /// Of a directory: its length, and its first block, counted from the first of all directories.
    pub(super) directory: DirectoryLength,
    pub(super) directory_block: u64,
}

impl Place {
    /// The node id that directories name it by.
    pub(super) fn nid(&self) -> u64 {
        self.offset / SLOT
    }
}

/// The places of all nodes.
#[derive(Debug)]
pub(super) struct Plan {
    /// The nodes in the order of their places.
    pub(super) order: Vec<NodeId>,
    places: Vec<Place>,
    /// Blocks of all directories together.
    pub(super) directory_blocks: u64,
    /// Bytes of all inodes.
    pub(super) metadata_bytes: u64,
}

impl Plan {
    pub(super) fn new(tree: &Tree) -> Self {
        let empty = Place {
            offset: 0,
            links: 0,
            parent: Tree::ROOT,
            directory: DirectoryLength::default(),
            directory_block: 0,
        };
        let mut plan = Self {
            order: vec![Tree::ROOT],
            places: vec![empty; tree.len()],
            directory_blocks: 0,
            metadata_bytes: SLOT,
        };
        plan.place_mut(Tree::ROOT).links = 2;
        let mut next = 0;
        while let Some(id) = plan.order.get(next).copied() {
            if let Kind::Directory(children) = &tree.node(id).kind {
                for child in children.values() {
                    plan.reach(tree, id, *child);
                }
                plan.measure_directory(tree, id);
            }
            plan.allocate(tree.node(id), id);
            next += 1;
        }
        plan
    }

    pub(super) fn place(&self, id: NodeId) -> &Place {
        &self.places[id.index()]
    }

    fn place_mut(&mut self, id: NodeId) -> &mut Place {
        &mut self.places[id.index()]
    }

    /// Counts a name of `child` in `parent`; the first one gives it a turn.
    fn reach(&mut self, tree: &Tree, parent: NodeId, child: NodeId) {
        let is_directory = matches!(tree.node(child).kind, Kind::Directory(_));
        if self.place(child).links == 0 {
            self.order.push(child);
        }
        if is_directory {
            self.place_mut(child).links = 2;
            self.place_mut(child).parent = parent;
            self.place_mut(parent).links += 1;
        } else {
            self.place_mut(child).links += 1;
        }
    }

    fn measure_directory(&mut self, tree: &Tree, id: NodeId) {
        let mut length = DirectoryLength::default();
        for (name, _) in entries(tree, id, self.place(id).parent) {
            length.push(name);
        }
        let first = self.directory_blocks;
        let has_inline_tail = length.tail <= room_for_tail(tree.node(id).attributes.xattrs.len());
        self.directory_blocks += length.full_blocks + u64::from(!has_inline_tail);
        let place = self.place_mut(id);
        place.directory = length;
        place.directory_block = first;
    }

    fn allocate(&mut self, node: &Node, id: NodeId) {
        let head = INODE + xattr_area(node.attributes.xattrs.len());
        let (inline, rest) = self.body(node, id, head);
        let whole = if head + inline <= BLOCK {
            head + inline
        } else {
            INODE
        } as u64;
        let block = BLOCK as u64;
        let mut offset = self.metadata_bytes.next_multiple_of(SLOT);
        if offset % block + whole > block {
            offset = offset.next_multiple_of(block);
        }
        self.place_mut(id).offset = offset;
        self.metadata_bytes = offset + (head + inline) as u64 + rest;
    }

    /// What follows the xattrs of an inode: bytes of inline tail, or bytes of index.
    fn body(&self, node: &Node, id: NodeId, head: usize) -> (usize, u64) {
        match &node.kind {
            Kind::Directory(_) => {
                let tail = self.place(id).directory.tail;
                if head + tail <= BLOCK {
                    (tail, 0)
                } else {
                    (0, 0)
                }
            }
            Kind::File(content) | Kind::Symlink(content) => match &content.stored {
                Stored::Flat { tail, .. } => (tail.map_or(0, |tail| usize::from(tail.len)), 0),
                Stored::Compressed { .. } => {
                    let align = head.next_multiple_of(8) - head;
                    let indexes = content.size.div_ceil(BLOCK as u64) * CLUSTER_INDEX as u64;
                    (0, (align + CLUSTER_HEADER) as u64 + indexes)
                }
                Stored::Chunked { chunk_bits, .. } => {
                    (0, 4 * content.size.div_ceil(1 << *chunk_bits))
                }
            },
            Kind::Character(_) | Kind::Block(_) | Kind::Fifo => (0, 0),
        }
    }
}

/// The entries of a directory as they are written: with `.` and `..`, in the order of their bytes.
pub(super) fn entries(tree: &Tree, id: NodeId, parent: NodeId) -> Vec<(&[u8], NodeId)> {
    let mut all: Vec<(&[u8], NodeId)> = vec![(b".", id), (b"..", parent)];
    if let Kind::Directory(children) = &tree.node(id).kind {
        all.extend(children.iter().map(|(name, child)| (&**name, *child)));
    }
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

/// The type in the entries of directories.
pub(super) fn dirent_type(kind: &Kind) -> DirentType {
    match kind {
        Kind::Directory(_) => DirentType::Directory,
        Kind::File(_) => DirentType::File,
        Kind::Symlink(_) => DirentType::Symlink,
        Kind::Character(_) => DirentType::Character,
        Kind::Block(_) => DirentType::Block,
        Kind::Fifo => DirentType::Fifo,
    }
}

/// The blocks of each cluster of a compressed file, in turn: stored (0: plain) and of data.
pub(super) fn clusters(size: u64, stored: &[u8]) -> impl Iterator<Item = (u8, u16)> {
    let total = size.div_ceil(BLOCK as u64);
    let last = stored.len().saturating_sub(1);
    stored.iter().enumerate().map(move |(i, blocks)| {
        let before = i as u64 * DataWriter::CLUSTER_BLOCKS;
        let data = if i == last {
            total.saturating_sub(before)
        } else {
            DataWriter::CLUSTER_BLOCKS
        };
        // At most 17.
        (*blocks, u16::try_from(data).unwrap_or(u16::MAX))
    })
}
