//! Stands in for `crate::disk` until that is merged.

use std::fs::{self, File};
use std::path::Path;

pub mod qcow2 {
    //! Stands in for `crate::disk::qcow2`.
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// A header.
    #[derive(Debug)]
    pub struct Header {
        /// Version.
        pub version: u32,
        /// Bytes of the disk.
        pub virtual_size: u64,
    }

    /// Why not.
    #[derive(Debug, thiserror::Error)]
    #[error("it {0}")]
    pub struct HeaderError(pub &'static str);

    /// Looks at a header.
    ///
    /// # Errors
    /// It is none.
    pub fn inspect(file: &File) -> Result<Header, HeaderError> {
        let mut head = [0; 32];
        file.read_exact_at(&mut head, 0)
            .map_err(|_| HeaderError("is cut short"))?;
        if !head.starts_with(b"QFI\xfb") {
            return Err(HeaderError("is no qcow2 image"));
        }
        if head[8..16] != [0; 8] {
            return Err(HeaderError("refers to a backing file"));
        }
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Ok(Header {
            version: word(4),
            virtual_size: u64::from(word(24)) << 32 | u64::from(word(28)),
        })
    }
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a stand-in")]
pub enum Format {
    Qcow2,
    Raw,
}

/// What it has become.
#[derive(Debug)]
#[expect(missing_docs, reason = "a stand-in")]
pub struct Normal {
    pub virtual_size: u64,
}

/// Why not.
#[derive(Debug, thiserror::Error)]
#[error("it {0}")]
pub struct NormaliseError(String);

/// Makes it qcow2 version 3.
///
/// # Errors
/// It cannot be done.
pub fn normalise(
    from: &Path,
    format: Format,
    to: &Path,
    cancel: &dyn Fn() -> bool,
) -> Result<Normal, NormaliseError> {
    let failed = |error: &dyn std::error::Error| NormaliseError(error.to_string());
    if cancel() {
        return Err(NormaliseError("was cancelled".to_owned()));
    }
    let header = File::open(from).map(|file| qcow2::inspect(&file));
    let header = header.map_err(|error| failed(&error))?;
    if format == Format::Qcow2 && header.is_ok_and(|header| header.version == 3) {
        fs::rename(from, to).map_err(|error| failed(&error))?;
    } else {
        let format = if format == Format::Raw {
            "raw"
        } else {
            "qcow2"
        };
        let done = std::process::Command::new("qemu-img")
            .args(["convert", "-q", "-f", format, "-O", "qcow2"])
            .args([from, to])
            .output()
            .map_err(|error| failed(&error))?;
        if !done.status.success() {
            return Err(NormaliseError(String::from_utf8_lossy(&done.stderr).into()));
        }
    }
    let file = File::open(to).map_err(|error| failed(&error))?;
    let header = qcow2::inspect(&file).map_err(|error| failed(&error))?;
    Ok(Normal {
        virtual_size: header.virtual_size,
    })
}
