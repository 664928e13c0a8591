//! Records of images: rows of `images` and `image_layers`.
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
    /// Normalised reference under which it was pulled.
    pub name: String,
    /// Digest of the platform's manifest.
    pub digest: Digest,
    /// Bytes on disk: blobs and boot files. Layers shared with other images count fully.
    pub size: ByteSize,
    /// As the image's configuration calls it.
    pub architecture: String,
    /// Its layers, bottom first.
    pub layers: Vec<ImageLayer>,
    /// The layer that holds the kernel.
    pub kernel_layer: Digest,
    /// The layer that holds the initial RAM disk.
    pub initrd_layer: Digest,
    /// When this host pulled it.
    pub created_at: Timestamp,
    /// When it was built, as it says itself.
    pub built_at: Option<String>,
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
    "name, digest, size, architecture, kernel_layer, initrd_layer, created_at, built_at";

/// Records an image, in place of an older one of the same name.
///
/// # Errors
/// The database failed.
pub fn put(tx: &Transaction<'_>, image: &ImageRecord) -> Result<(), DatabaseError> {
    let failed = statement("record an image");
    tx.execute("DELETE FROM images WHERE name = ?1", [&image.name])
        .map_err(&failed)?;
    tx.execute(
        &format!("INSERT INTO images ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"),
        params![
            image.name,
            image.digest.to_string(),
            // SQLite counts in i64, and no host has 8 EiB of blobs.
            i64::try_from(image.size.bytes()).unwrap_or(i64::MAX),
            image.architecture,
            image.kernel_layer.to_string(),
            image.initrd_layer.to_string(),
            image.created_at.to_string(),
            image.built_at,
        ],
    )
    .map_err(&failed)?;
    for (position, layer) in (0i64..).zip(&image.layers) {
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

/// Removes an image's record; its blobs stay until `gc`.
///
/// # Errors
/// The database failed.
pub fn delete(tx: &Transaction<'_>, name: &str) -> Result<(), DatabaseError> {
    tx.execute("DELETE FROM images WHERE name = ?1", [name])
        .map(drop)
        .map_err(statement("remove an image"))
}

/// Every image, by name.
///
/// # Errors
/// The database failed or holds what no image is.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<ImageRecord>, DatabaseError> {
    let query = format!("SELECT {COLUMNS} FROM images ORDER BY name");
    rows::all(tx, "list images", (&query, []), |row| from_row(tx, row))
}

/// The image with exactly this normalised name.
///
/// # Errors
/// The database failed or holds what no image is.
pub fn get(tx: &Transaction<'_>, name: &str) -> Result<Option<ImageRecord>, DatabaseError> {
    let query = format!("SELECT {COLUMNS} FROM images WHERE name = ?1");
    rows::first(tx, "read an image", (&query, [name]), |row| {
        from_row(tx, row)
    })
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

/// Every layer that some image needs.
///
/// # Errors
/// The database failed.
pub fn needed_blobs(tx: &Transaction<'_>) -> Result<Vec<Digest>, DatabaseError> {
    rows::digests(
        tx,
        "list layers",
        "SELECT DISTINCT digest FROM image_layers",
    )
}

fn from_row(tx: &Transaction<'_>, row: &Row<'_>) -> Result<ImageRecord, DatabaseError> {
    let action = "read an image";
    let text = |index| rows::text(row, index, action);
    let name = text(0)?.to_owned();
    let size: i64 = row.get(2).map_err(statement(action))?;
    Ok(ImageRecord {
        layers: layers_of(tx, &name)?,
        digest: parse("digest", text(1)?)?,
        size: ByteSize::from_bytes(size.unsigned_abs()),
        architecture: text(3)?.to_owned(),
        kernel_layer: parse("digest", text(4)?)?,
        initrd_layer: parse("digest", text(5)?)?,
        created_at: parse("time", text(6)?)?,
        built_at: rows::text_or_null(row, 7, action)?.map(str::to_owned),
        name,
    })
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
            architecture: "amd64".into(),
            layers: vec![layer(b"bottom"), layer(content)],
            kernel_layer: Digest::of(b"bottom"),
            initrd_layer: Digest::of(content),
            created_at: Timestamp::UNIX_EPOCH,
            built_at: None,
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
