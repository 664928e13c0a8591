//! Records of images: rows of `images` and `image_layers`, and of `disk_images`.
//!
//! A name is an image of either kind, never of both.
//!
//! Invariant: a row is written only after all its blobs and boot files have their final names, so
//! whatever a row names is there, and whatever no row names may go.

use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};

use crate::store::db::{DatabaseError, parse, statement};
use crate::store::rows;
use crate::units::{ByteSize, Digest};

/// The shortest prefix of a digest, in hex digits, that names an image.
const SHORTEST_DIGEST: usize = 12;

/// One image on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Normalised reference or URL under which it was pulled.
    pub name: String,
    /// Digest of the platform's manifest; of a disk image, of the file as it was transferred.
    pub digest: Digest,
    /// Bytes on disk: blobs and boot files. Layers shared with other images count fully.
    pub size: ByteSize,
    /// When this host pulled it.
    pub created_at: Timestamp,
    /// What a VM of it runs from.
    pub content: Content,
}

/// What a VM of an image runs from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Layers with a kernel: an OCI image.
    Layers(LayersContent),
    /// A disk on which a system is installed: a cloud image.
    Disk(DiskContent),
}

/// Layers with a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayersContent {
    /// As the image's configuration calls it.
    pub architecture: String,
    /// Bottom first.
    pub layers: Vec<ImageLayer>,
    /// The layer that holds the kernel.
    pub kernel_layer: Digest,
    /// The layer that holds the initial RAM disk.
    pub initrd_layer: Digest,
    /// When it was built, as it says itself.
    pub built_at: Option<String>,
}

/// A disk on which a system is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskContent {
    /// Bytes of the disk that a guest sees.
    pub virtual_size: ByteSize,
    /// As its server called this version of it.
    pub etag: Option<String>,
    /// When it was changed last, in its server's words.
    pub last_modified: Option<String>,
}

/// One layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLayer {
    /// Of the layer as transferred; names the blob.
    pub digest: Digest,
    /// Of its tar.
    pub diff_id: Digest,
}

/// Why an image is not found.
#[derive(Debug, thiserror::Error)]
pub enum ImageRecordError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// There is no such image on this host.
    #[error("there is no image {reference:?} on this host")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// The name that is most like it.
        near: Option<String>,
    },
    /// Several digests begin with the text.
    #[error("{reference:?} fits several images: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// The images that it fits.
        candidates: Vec<String>,
    },
}

const COLUMNS: &str =
    "name, digest, size, created_at, architecture, kernel_layer, initrd_layer, built_at";

const DISK_COLUMNS: &str = "name, digest, size, created_at, virtual_size, etag, last_modified";

/// Records an image, in place of an older one of the same name.
///
/// # Errors
/// The database failed.
pub fn put(tx: &Transaction<'_>, image: &ImageRecord) -> Result<(), DatabaseError> {
    delete(tx, &image.name)?;
    match &image.content {
        Content::Layers(layers) => put_layers(tx, image, layers),
        Content::Disk(disk) => put_disk(tx, image, disk),
    }
}

fn put_layers(
    tx: &Transaction<'_>,
    image: &ImageRecord,
    content: &LayersContent,
) -> Result<(), DatabaseError> {
    let failed = statement("record an image");
    tx.execute(
        &format!("INSERT INTO images ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"),
        params![
            image.name,
            image.digest.to_string(),
            stored(image.size),
            image.created_at.to_string(),
            content.architecture,
            content.kernel_layer.to_string(),
            content.initrd_layer.to_string(),
            content.built_at,
        ],
    )
    .map_err(&failed)?;
    for (position, layer) in (0i64..).zip(&content.layers) {
        tx.execute(
            "INSERT INTO image_layers VALUES (?1, ?2, ?3, ?4)",
            params![
                image.name,
                position,
                layer.digest.to_string(),
                layer.diff_id.to_string()
            ],
        )
        .map_err(&failed)?;
    }
    Ok(())
}

fn put_disk(
    tx: &Transaction<'_>,
    image: &ImageRecord,
    content: &DiskContent,
) -> Result<(), DatabaseError> {
    tx.execute(
        &format!("INSERT INTO disk_images ({DISK_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
        params![
            image.name,
            image.digest.to_string(),
            stored(image.size),
            image.created_at.to_string(),
            stored(content.virtual_size),
            content.etag,
            content.last_modified,
        ],
    )
    .map(drop)
    .map_err(statement("record an image"))
}

/// SQLite counts in i64, and no host has 8 EiB.
fn stored(size: ByteSize) -> i64 {
    i64::try_from(size.bytes()).unwrap_or(i64::MAX)
}

/// Removes an image's record; its blobs stay until `gc`.
///
/// # Errors
/// The database failed.
pub fn delete(tx: &Transaction<'_>, name: &str) -> Result<(), DatabaseError> {
    for query in [
        "DELETE FROM images WHERE name = ?1",
        "DELETE FROM disk_images WHERE name = ?1",
    ] {
        tx.execute(query, [name])
            .map_err(statement("remove an image"))?;
    }
    Ok(())
}

/// Every image, by name.
///
/// # Errors
/// The database failed or holds what no image is.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<ImageRecord>, DatabaseError> {
    let query = format!("SELECT {COLUMNS} FROM images");
    let mut images = rows::all(tx, "list images", (&query, []), |row| from_row(tx, row))?;
    let query = format!("SELECT {DISK_COLUMNS} FROM disk_images");
    images.extend(rows::all(tx, "list images", (&query, []), disk_from_row)?);
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

/// The image with exactly this normalised name.
///
/// # Errors
/// The database failed or holds what no image is.
pub fn get(tx: &Transaction<'_>, name: &str) -> Result<Option<ImageRecord>, DatabaseError> {
    let query = format!("SELECT {COLUMNS} FROM images WHERE name = ?1");
    let found = rows::first(tx, "read an image", (&query, [name]), |row| {
        from_row(tx, row)
    })?;
    if found.is_some() {
        return Ok(found);
    }
    let query = format!("SELECT {DISK_COLUMNS} FROM disk_images WHERE name = ?1");
    rows::first(tx, "read an image", (&query, [name]), disk_from_row)
}

/// The image that a user means: by normalised name, or by a digest or the beginning of one, of at
/// least 12 digits and with or without `sha256:`. Several names of one digest are one image.
///
/// # Errors
/// No image fits, or images with different digests do, or the database failed.
pub fn resolve(
    tx: &Transaction<'_>,
    typed: &str,
    normalised: Option<&str>,
) -> Result<ImageRecord, ImageRecordError> {
    if let Some(image) = normalised.map(|name| get(tx, name)).transpose()?.flatten() {
        return Ok(image);
    }
    let hex = typed.strip_prefix("sha256:").unwrap_or(typed);
    let is_digest = hex.len() >= SHORTEST_DIGEST && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let (mut found, others): (Vec<_>, Vec<_>) = list(tx)?
        .into_iter()
        .partition(|image| is_digest && image.digest.hex().starts_with(hex));
    if found.iter().any(|image| image.digest != found[0].digest) {
        let candidates = found.into_iter().map(|image| image.name).collect();
        return Err(ImageRecordError::Ambiguous {
            reference: typed.to_owned(),
            candidates,
        });
    }
    if found.is_empty() {
        let names = others.into_iter().map(|image| image.name);
        return Err(ImageRecordError::NotFound {
            reference: typed.to_owned(),
            near: normalised.and_then(|name| rows::most_like(typed, name, names)),
        });
    }
    Ok(found.swap_remove(0))
}

/// Every blob that some image needs.
///
/// # Errors
/// The database failed.
pub fn needed_blobs(tx: &Transaction<'_>) -> Result<Vec<Digest>, DatabaseError> {
    let query = "SELECT digest FROM image_layers UNION SELECT digest FROM disk_images";
    rows::digests(tx, "list layers", query)
}

fn from_row(tx: &Transaction<'_>, row: &Row<'_>) -> Result<ImageRecord, DatabaseError> {
    let action = "read an image";
    let text = |index| rows::text(row, index, action);
    let content = LayersContent {
        layers: layers_of(tx, text(0)?)?,
        architecture: text(4)?.to_owned(),
        kernel_layer: parse("digest", text(5)?)?,
        initrd_layer: parse("digest", text(6)?)?,
        built_at: rows::text_or_null(row, 7, action)?.map(str::to_owned),
    };
    of_either_kind(row, Content::Layers(content))
}

fn disk_from_row(row: &Row<'_>) -> Result<ImageRecord, DatabaseError> {
    let optional = |index| rows::text_or_null(row, index, "read an image");
    let content = DiskContent {
        virtual_size: size(row, 4)?,
        etag: optional(5)?.map(str::to_owned),
        last_modified: optional(6)?.map(str::to_owned),
    };
    of_either_kind(row, Content::Disk(content))
}

/// The columns with which both kinds begin.
fn of_either_kind(row: &Row<'_>, content: Content) -> Result<ImageRecord, DatabaseError> {
    let text = |index| rows::text(row, index, "read an image");
    Ok(ImageRecord {
        name: text(0)?.to_owned(),
        digest: parse("digest", text(1)?)?,
        size: size(row, 2)?,
        created_at: parse("time", text(3)?)?,
        content,
    })
}

fn size(row: &Row<'_>, index: usize) -> Result<ByteSize, DatabaseError> {
    let size: i64 = row.get(index).map_err(statement("read an image"))?;
    Ok(ByteSize::from_bytes(size.unsigned_abs()))
}

fn layers_of(tx: &Transaction<'_>, name: &str) -> Result<Vec<ImageLayer>, DatabaseError> {
    let action = "read the layers of an image";
    let query = "SELECT digest, diff_id FROM image_layers WHERE image = ?1 ORDER BY position";
    rows::all(tx, action, (query, [name]), |row| {
        let digest = |index| {
            let text: String = row.get(index).map_err(statement(action))?;
            parse("digest", &text)
        };
        Ok(ImageLayer {
            digest: digest(0)?,
            diff_id: digest(1)?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Database, Durability};

    fn image(name: &str, content: &[u8]) -> ImageRecord {
        let layer = |n: &[u8]| ImageLayer {
            digest: Digest::of(n),
            diff_id: Digest::of(n),
        };
        ImageRecord {
            name: name.into(),
            digest: Digest::of(content),
            size: ByteSize::from_mib(3),
            created_at: Timestamp::UNIX_EPOCH,
            content: Content::Layers(LayersContent {
                architecture: "amd64".into(),
                layers: vec![layer(b"bottom"), layer(content)],
                kernel_layer: Digest::of(b"bottom"),
                initrd_layer: Digest::of(content),
                built_at: None,
            }),
        }
    }

    fn disk(name: &str, content: &[u8]) -> ImageRecord {
        ImageRecord {
            content: Content::Disk(DiskContent {
                virtual_size: ByteSize::from_gib(2),
                etag: Some("\"1-2\"".into()),
                last_modified: None,
            }),
            ..image(name, content)
        }
    }

    fn database(dir: &std::path::Path, images: &[ImageRecord]) -> Database {
        std::fs::create_dir(dir.join("locks")).unwrap();
        let mut db = Database::open(dir).unwrap();
        db.write(Durability::Full, |tx| {
            images.iter().try_for_each(|image| put(tx, image))
        })
        .unwrap();
        db
    }

    #[test]
    fn an_image_reads_back_as_written_and_the_newer_replaces_the_older() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = database(
            dir.path(),
            &[image("a", b"1"), image("b", b"2"), image("a", b"3")],
        );
        assert_eq!(db.read(list).unwrap(), [image("a", b"3"), image("b", b"2")]);
        let mut needed = db.read(needed_blobs).unwrap();
        needed.sort();
        let mut expected = vec![Digest::of(b"bottom"), Digest::of(b"2"), Digest::of(b"3")];
        expected.sort();
        assert_eq!(needed, expected);
    }

    #[test]
    fn a_name_is_an_image_of_one_kind() {
        let dir = tempfile::tempdir().unwrap();
        let url = "https://example.org/disk.img";
        let images = [image("a", b"1"), disk(url, b"2"), disk("a", b"3")];
        let mut db = database(dir.path(), &images);
        assert_eq!(db.read(list).unwrap(), [disk("a", b"3"), disk(url, b"2")]);
        assert_eq!(db.read(|tx| get(tx, url)).unwrap(), Some(disk(url, b"2")));
        let mut needed = db.read(needed_blobs).unwrap();
        needed.sort();
        let mut expected = [Digest::of(b"2"), Digest::of(b"3")];
        expected.sort();
        assert_eq!(needed, expected);
        db.write(Durability::Full, |tx| put(tx, &image("a", b"4")))
            .unwrap();
        assert_eq!(db.read(|tx| get(tx, "a")).unwrap(), Some(image("a", b"4")));
    }

    #[test]
    fn an_image_is_found_by_name_and_by_digest() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = database(
            dir.path(),
            &[image("a", b"1"), image("same", b"1"), image("b", b"2")],
        );
        let mut resolve = |typed: &str| db.read(|tx| resolve(tx, typed, Some(typed)));
        let hex = Digest::of(b"2").hex();
        assert_eq!(resolve("a").unwrap().name, "a");
        assert_eq!(resolve(&hex).unwrap().name, "b");
        assert_eq!(
            resolve(&format!("sha256:{}", &hex[..12])).unwrap().name,
            "b"
        );
        assert_eq!(
            resolve(&Digest::of(b"1").short()).unwrap().digest,
            Digest::of(b"1"),
            "two names, one image"
        );
        assert!(resolve(&hex[..11]).is_err(), "too short a digest");
        assert!(resolve("nothing").is_err());
    }
}
