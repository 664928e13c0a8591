//! Building tars, converting them, reading images back.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use tempfile::TempDir;

use super::super::{Compression, LayerError, LayerPaths, LayerReport, Limits, convert};

pub(super) const UUID: [u8; 16] = *b"cocoon test uuid";
pub(super) const BOTH: [Compression; 2] = [Compression::None, Compression::Lz4];

/// A converted layer.
pub(super) struct Made {
    pub(super) dir: TempDir,
    pub(super) report: LayerReport,
}

impl Made {
    pub(super) fn blob(&self) -> PathBuf {
        self.dir.path().join("blob")
    }

    pub(super) fn tree(&self) -> BTreeMap<Vec<u8>, Seen> {
        read_image(&fs::read(self.blob()).unwrap())
    }

    pub(super) fn kernel(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("kernel")).unwrap()
    }

    pub(super) fn initrd(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("initrd")).unwrap()
    }
}

/// Converts; on an error checks that nothing is left, on success that `fsck.erofs` is content.
pub(super) fn try_make(
    mut tar: &[u8],
    compression: Compression,
    limits: &Limits,
) -> Result<Made, LayerError> {
    let dir = tempfile::tempdir().unwrap();
    let [blob, kernel, initrd] = ["blob", "kernel", "initrd"].map(|name| dir.path().join(name));
    let paths = LayerPaths {
        blob: &blob,
        kernel: &kernel,
        initrd: &initrd,
    };
    let result = convert(&mut tar, compression, limits, &paths);
    let result = result.and_then(|converted| converted.finish(UUID));
    match result {
        Ok(report) => {
            assert!(tar.is_empty(), "the stream was not read to its end");
            assert_eq!(report.blob_size, fs::metadata(&blob).unwrap().len());
            assert_eq!(report.has_kernel, kernel.exists());
            assert_eq!(report.has_initrd, initrd.exists());
            fsck(&blob);
            Ok(Made { dir, report })
        }
        Err(error) => {
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{error}");
            Err(error)
        }
    }
}

pub(super) fn make(tar: &[u8], compression: Compression) -> Made {
    try_make(tar, compression, &Limits::default()).unwrap_or_else(|error| panic!("{error:?}"))
}

/// Lets the reference implementation check an image, all compressed data included.
pub(super) fn fsck(blob: &Path) {
    let output = match Command::new("fsck.erofs")
        .arg("--extract")
        .arg(blob)
        .output()
    {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: fsck.erofs does not run ({error}); install erofs-utils");
            return;
        }
    };
    let (status, said) = (output.status, String::from_utf8_lossy(&output.stderr));
    assert!(
        status.success() && said.is_empty(),
        "fsck: {status}: {said}"
    );
}

/// What a reader sees of one inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// As `ls -l` shows it: `- d l c b p`.
    pub(super) kind: char,
    pub(super) permissions: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    pub(super) device: (u32, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Content of a file, target of a link.
    pub(super) data: Vec<u8>,
}

/// All of an image by path, the root as an empty one.
pub(super) fn read_image(image: &[u8]) -> BTreeMap<Vec<u8>, Seen> {
    let fs = EroFS::new(SliceImage::new(image)).unwrap();
    let root = fs.get_inode(fs.super_block().root_inode_id()).unwrap();
    let mut all = BTreeMap::from([(Vec::new(), see(&fs, root))]);
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let name = entry.dir_entry.file_name();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let path = entry.dir_entry.path().into_vec();
        let path = path.strip_prefix(b"/").unwrap_or(&path).to_vec();
        all.insert(path, see(&fs, entry.inode));
    }
    all
}

fn see(fs: &EroFS<SliceImage<'_>>, inode: erofs_rs::types::Inode) -> Seen {
    use rustix::fs::FileType;
    let mut data = Vec::new();
    let kind = match inode.file_type() {
        FileType::RegularFile => {
            let mut file = fs.open_inode_file(inode).unwrap();
            file.read_to_end(&mut data).unwrap();
            '-'
        }
        FileType::Symlink => {
            data = fs.read_link_inode(inode).unwrap().into_vec();
            'l'
        }
        FileType::Directory => 'd',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        other => panic!("unexpected type {other:?}"),
    };
    let xattrs = fs.xattrs_inode(inode).unwrap();
    Seen {
        kind,
        permissions: inode.permissions().mode(),
        uid: inode.uid(),
        gid: inode.gid(),
        mtime: inode.modified_unix(),
        links: inode.nlink(),
        device: inode.device().unwrap_or_default(),
        xattrs: xattrs.into_iter().collect(),
        data,
    }
}

/// A tar that is being built, with headers that may lie.
#[derive(Default)]
pub(super) struct TarBuilder {
    bytes: Vec<u8>,
}

/// The fixed fields of an entry.
#[derive(Clone)]
pub(super) struct Fields {
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: u64,
    pub(super) link: Vec<u8>,
    pub(super) device: (u32, u32),
}

impl Fields {
    pub(super) fn of(kind: u8) -> Self {
        Self {
            kind,
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 0,
            link: Vec::new(),
            device: (0, 0),
        }
    }
}

impl TarBuilder {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// An entry of any kind; a name or link that is too long goes into GNU long entries.
    pub(super) fn entry(mut self, name: &[u8], fields: &Fields, data: &[u8]) -> Self {
        for (flag, text) in [(b'L', name), (b'K', &fields.link[..])] {
            if text.len() > 100 {
                let text = [text, b"\0"].concat();
                self = self.record(&header(b"././@LongLink", flag, text.len() as u64), &text);
            }
        }
        let mut record = header(name, fields.kind, data.len() as u64);
        record.set_mode(fields.mode);
        record.set_uid(fields.uid);
        record.set_gid(fields.gid);
        record.set_mtime(fields.mtime);
        record.set_device_major(fields.device.0).unwrap();
        record.set_device_minor(fields.device.1).unwrap();
        let shown = &fields.link[..fields.link.len().min(100)];
        record.as_gnu_mut().unwrap().linkname[..shown.len()].copy_from_slice(shown);
        record.set_cksum();
        self.record(&record, data)
    }

    pub(super) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name.as_bytes(), &Fields::of(b'0'), data)
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.entry(name.as_bytes(), &Fields::of(b'5'), b"")
    }

    pub(super) fn link(self, kind: u8, name: &str, target: &str) -> Self {
        let mut fields = Fields::of(kind);
        fields.link = target.as_bytes().to_vec();
        self.entry(name.as_bytes(), &fields, b"")
    }

    /// PAX records for the next entry.
    pub(super) fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(k, v)| pax_record(k, v)).collect();
        self.record(&header(b"PaxHeaders/x", b'x', data.len() as u64), &data)
    }

    /// A header as it is, then data and padding.
    pub(super) fn record(mut self, header: &tar::Header, data: &[u8]) -> Self {
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The archive so far, without an end.
    pub(super) fn cut(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

pub(super) fn header(name: &[u8], kind: u8, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let shown = &name[..name.len().min(100)];
    header.as_gnu_mut().unwrap().name[..shown.len()].copy_from_slice(shown);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header
}

pub(super) fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut len = rest.len();
    while len != rest.len() + len.to_string().len() {
        len = rest.len() + len.to_string().len();
    }
    [len.to_string().as_bytes(), &rest].concat()
}

/// Bytes that no compressor shortens.
pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Bytes that compress to about half.
pub(super) fn text(len: usize, seed: u64) -> Vec<u8> {
    let noise = noise(len / 2 + 1, seed);
    noise
        .iter()
        .flat_map(|b| [*b, b'a'])
        .take(len)
        .map(|b| b & 0x67)
        .collect()
}
