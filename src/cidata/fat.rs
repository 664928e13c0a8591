//! The volume: FAT12, because every guest's kernel reads it and cloud-init looks for its label.
//!
//! ```text
//! boot sector │ FAT │ FAT │ root folder: CIDATA, files │ their clusters, 512 bytes each
//! ```

use std::io::{Cursor, Write};

use fatfs::{
    Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider,
};

use super::CidataError;

/// Bytes of a volume: room for a thousand NICs, and the size that such volumes always had.
pub const VOLUME_BYTES: usize = 1 << 20;

/// By which cloud-init finds it; blank to the eleven bytes of a FAT's label.
const LABEL: [u8; 11] = *b"CIDATA     ";

/// Bytes of a cluster: a sector, as the files are small.
const CLUSTER_BYTES: u32 = 512;

/// The time of all files, so that equal volumes are equal: the first one that FAT knows.
#[derive(Debug)]
struct Epoch;

static EPOCH: Epoch = Epoch;

impl TimeProvider for Epoch {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

/// A volume with these files, of which `instance_id` gives the number.
pub(super) fn volume(
    instance_id: &str,
    files: &[(&'static str, String)],
) -> Result<Vec<u8>, CidataError> {
    let mut bytes = vec![0; VOLUME_BYTES];
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .bytes_per_cluster(CLUSTER_BYTES)
        .volume_id(crc32fast::hash(instance_id.as_bytes()))
        .volume_label(LABEL);
    fatfs::format_volume(Cursor::new(bytes.as_mut_slice()), options)
        .map_err(CidataError::Format)?;
    let volume = FileSystem::new(
        Cursor::new(bytes.as_mut_slice()),
        FsOptions::new().time_provider(&EPOCH),
    )
    .map_err(CidataError::Format)?;
    for (file, text) in files {
        write(&volume, file, text).map_err(|source| CidataError::Write { file, source })?;
    }
    volume.unmount().map_err(CidataError::Format)?;
    Ok(bytes)
}

fn write(
    volume: &FileSystem<Cursor<&mut [u8]>>,
    name: &str,
    text: &str,
) -> Result<(), std::io::Error> {
    let mut file = volume.root_dir().create_file(name)?;
    file.write_all(text.as_bytes())?;
    // Here, because an error of its drop would be lost.
    file.flush()
}
