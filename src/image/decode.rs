//! The blocking half of a layer's pass: bytes from the network become a tar, and both are hashed.
//!
//! ```text
//!   network task ──chunks──▶ Received ──▶ gzip | zstd | none ──▶ Hashed ──▶ converter
//!                            sha-256 of the                      sha-256 of
//!                            layer as sent                       the tar: diff id
//! ```
//! Memory is bounded by the channel and by the window of the decompressor (zstd: 128 MiB at most).

use std::io::{self, BufRead, Read};

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::manifest::Wrapping;
use crate::units::Digest;

/// The first bytes of a gzip member (RFC 1952) and of a zstd frame (RFC 8878).
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// A zstd stream may begin with a skippable frame, 0x184D2A50 to 0x184D2A5F.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// What the network task sends.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// More of the layer.
    Bytes(Bytes),
    /// The layer is complete. A channel that closes without this was abandoned.
    End,
}

/// The layer as it is sent.
pub(crate) struct Received {
    chunks: mpsc::Receiver<Chunk>,
    current: Bytes,
    hasher: Sha256,
    count: u64,
    ended: bool,
}

impl Received {
    pub(crate) fn new(chunks: mpsc::Receiver<Chunk>) -> Self {
        Self {
            chunks,
            current: Bytes::new(),
            hasher: Sha256::new(),
            count: 0,
            ended: false,
        }
    }

    /// Bytes that have arrived.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Takes the next chunk, or none at the end.
    fn receive(&mut self) -> io::Result<Option<Bytes>> {
        while !self.ended {
            match self.chunks.blocking_recv() {
                Some(Chunk::Bytes(bytes)) if bytes.is_empty() => {}
                Some(Chunk::Bytes(bytes)) => {
                    self.hasher.update(&bytes);
                    self.count += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Some(Chunk::End) => self.ended = true,
                None => {
                    let reason = "the download was abandoned";
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason));
                }
            }
        }
        Ok(None)
    }

    /// The first bytes, at most `n`, without taking them.
    fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        while self.current.len() < n {
            let Some(more) = self.receive()? else { break };
            self.current = if self.current.is_empty() {
                more
            } else {
                [&self.current[..], &more].concat().into()
            };
        }
        Ok(&self.current[..n.min(self.current.len())])
    }

    /// Takes all that is left and gives the digest of the whole.
    pub(crate) fn finish(&mut self) -> io::Result<Digest> {
        self.current.clear();
        while self.receive()?.is_some() {}
        Ok(Digest::finish(self.hasher.clone()))
    }
}

impl BufRead for Received {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty()
            && let Some(bytes) = self.receive()?
        {
            self.current = bytes;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n: usize) {
        self.current.advance(n);
    }
}

impl Read for Received {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// The tar within a layer, which must be wrapped as its media type says.
pub(crate) fn unwrap<'a>(
    received: &'a mut Received,
    wrapping: Wrapping,
) -> io::Result<Hashed<Box<dyn Read + 'a>>> {
    let first = received.peek(ZSTD_MAGIC.len())?;
    let found = wrapping_of(first);
    if found != wrapping {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "by its media type it is {}, by its first bytes {}",
                name(wrapping),
                name(found)
            ),
        ));
    }
    Ok(Hashed::new(decoder(received, wrapping)?))
}

/// What is within `wrapped`.
pub(crate) fn decoder<'a>(
    wrapped: impl BufRead + 'a,
    wrapping: Wrapping,
) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match wrapping {
        Wrapping::None => Box::new(wrapped),
        Wrapping::Gzip => Box::new(MultiGzDecoder::new(wrapped)),
        Wrapping::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(wrapped)?),
    })
}

/// How a stream that begins so is wrapped.
pub(crate) fn wrapping_of(first: &[u8]) -> Wrapping {
    let skippable = first.get(1..4) == Some(ZSTD_SKIPPABLE) && first[0] >> 4 == 5;
    if first.starts_with(GZIP_MAGIC) {
        Wrapping::Gzip
    } else if first.starts_with(ZSTD_MAGIC) || skippable {
        Wrapping::Zstd
    } else {
        Wrapping::None
    }
}

fn name(wrapping: Wrapping) -> &'static str {
    match wrapping {
        Wrapping::None => "not compressed",
        Wrapping::Gzip => "gzip",
        Wrapping::Zstd => "zstd",
    }
}

/// A reader that hashes and counts what passes.
pub(crate) struct Hashed<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            count: 0,
        }
    }

    /// Bytes that have passed.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The digest of what has passed.
    pub(crate) fn digest(self) -> Digest {
        Digest::finish(self.hasher)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(to)?;
        self.hasher.update(&to[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd_of(content: &[u8]) -> Vec<u8> {
        zstd::encode_all(content, 1).unwrap()
    }

    /// Sends `sent` in chunks of the given size, and the end if told so.
    fn received(sent: &[u8], chunk: usize, end: bool) -> Received {
        let (to, chunks) = mpsc::channel(sent.len() + 2);
        for part in sent.chunks(chunk) {
            to.try_send(Chunk::Bytes(Bytes::copy_from_slice(part)))
                .unwrap();
        }
        if end {
            to.try_send(Chunk::End).unwrap();
        }
        Received::new(chunks)
    }

    fn read_all(received: &mut Received, wrapping: Wrapping) -> io::Result<(Vec<u8>, Digest)> {
        let mut tar = unwrap(received, wrapping)?;
        let mut content = Vec::new();
        tar.read_to_end(&mut content)?;
        Ok((content, tar.digest()))
    }

    proptest! {
        #[test]
        fn both_digests_are_right_however_the_bytes_arrive(
            content in proptest::collection::vec(any::<u8>(), 1..2000), split in 0usize..2000, chunk in 1usize..50
        ) {
            let (head, tail) = content.split_at(split.min(content.len()));
            let multi = |f: fn(&[u8]) -> Vec<u8>| [f(head), f(tail)].concat();
            for (sent, wrapping) in [
                (multi(gzip), Wrapping::Gzip),
                (multi(zstd_of), Wrapping::Zstd),
                ([b"tar".as_slice(), &content].concat(), Wrapping::None),
            ] {
                let expected = if wrapping == Wrapping::None { &sent } else { &content };
                let mut received = received(&sent, chunk, true);
                let (found, diff_id) = read_all(&mut received, wrapping).unwrap();
                prop_assert_eq!(&found, expected);
                prop_assert_eq!(diff_id, Digest::of(expected));
                prop_assert_eq!(received.finish().unwrap(), Digest::of(&sent));
                prop_assert_eq!(received.count(), sent.len() as u64);
            }
        }
    }

    #[test]
    fn a_layer_that_is_cut_or_abandoned_is_an_error_and_never_an_end() {
        let content = vec![7; 5000];
        for (sent, wrapping) in [
            (gzip(&content), Wrapping::Gzip),
            (zstd_of(&content), Wrapping::Zstd),
        ] {
            let cut = &sent[..sent.len() - 5];
            assert!(read_all(&mut received(cut, 9, true), wrapping).is_err());
            let abandoned = read_all(&mut received(cut, 9, false), wrapping);
            assert!(abandoned.is_err());
        }
        let abandoned = read_all(&mut received(&content, 9, false), Wrapping::None).unwrap_err();
        assert_eq!(abandoned.kind(), io::ErrorKind::ConnectionAborted);
        assert!(received(b"x", 1, false).finish().is_err());
    }

    #[test]
    fn a_wrapping_other_than_promised_is_refused() {
        let gz = gzip(b"x");
        let zst = zstd_of(b"x");
        for (sent, wrapping) in [
            (&gz, Wrapping::Zstd),
            (&gz, Wrapping::None),
            (&zst, Wrapping::Gzip),
            (&b"plain".to_vec(), Wrapping::Gzip),
            (&Vec::new(), Wrapping::Gzip),
        ] {
            let error = read_all(&mut received(sent, 1, true), wrapping).unwrap_err();
            assert!(error.to_string().contains("by its first bytes"), "{error}");
        }
    }
}
