//! A file from a server, over as many connections and attempts as it takes.
//!
//! ```text
//!   first answer ─┬▶ parts: each connection takes the next piece ─▶ landing ─▶ digest
//!                 │     cut: that piece goes on where it broke; in the end another connection gets it
//!                 │     changed: anew from the first answer, a few times
//!                 └▶ whole: one connection ─▶ landing ─▶ digest
//!                       cut: anew from the first answer, as often as the policy says
//! ```
//! Pieces are given out in order, so the file is never far from complete up to where connections are, and its
//! digest is known as soon as the last of them is there.
//!
//! Invariant: bytes of two versions are never joined.

use std::cell::Cell;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use futures_util::future::try_join_all;
use reqwest::{Response, StatusCode};

use super::answer::{Version, part_of};
use super::connection::{Coming, Server, Source};
use super::error::{CloudError, TransferError};
use super::landing::{Landing, cannot_keep};
use super::{CloudOptions, CloudUrl, Known};
use crate::image::progress::{Progress, PullEvent};
use crate::image::retry::PROGRESS;
use crate::units::{ByteSize, Digest};

/// How often a file may be another than before; a mirror is brought up to date once at a time.
const MAX_CHANGES: u32 = 3;

/// What is to be fetched, and how.
pub(super) struct Transfer<'a> {
    pub(super) url: &'a CloudUrl,
    /// What is here already.
    pub(super) known: Option<&'a Known>,
    pub(super) options: &'a CloudOptions,
    /// Gets the bytes.
    pub(super) file: &'a File,
    /// Where that file is.
    pub(super) folder: &'a Path,
    pub(super) progress: &'a dyn Progress,
}

/// How a transfer ends well.
#[derive(Debug)]
pub(super) enum Transferred {
    /// What is known is what there is.
    Unchanged,
    Whole {
        digest: Digest,
        version: Version,
    },
}

/// How an attempt ends otherwise.
enum Stop {
    /// It may be made once more.
    Anew(TransferError),
    Final(CloudError),
}

impl From<CloudError> for Stop {
    fn from(error: CloudError) -> Self {
        Self::Final(error)
    }
}

impl From<TransferError> for Stop {
    fn from(error: TransferError) -> Self {
        Self::Anew(error)
    }
}

impl Transfer<'_> {
    /// Fetches the file whole, unless it is known.
    pub(super) async fn run(&self) -> Result<Transferred, CloudError> {
        let what = self.url.to_string();
        let attempts = Attempts {
            transfer: self,
            server: Server::new(self.url)?,
            what: &what,
            wants_parts: Cell::new(true),
        };
        let (mut failures, mut changes) = (0, 0);
        loop {
            let error = match attempts.once().await {
                Ok(done) => return Ok(done),
                Err(Stop::Final(error)) => return Err(error),
                Err(Stop::Anew(error)) => error,
            };
            let delay = if let TransferError::Changed { url } = error {
                changes += 1;
                if changes > MAX_CHANGES {
                    let times = changes;
                    return Err(TransferError::Unstable { url, times }.into());
                }
                let error = TransferError::Changed { url };
                self.tell(&error, Duration::ZERO);
                continue;
            } else {
                // A host that has never been there is not waited for: its name may be wrong.
                let is_lasting = !error.is_temporary() || !attempts.server.has_answered();
                let delay = self.options.retry.delay(failures, error.retry_after());
                delay.filter(|_| !is_lasting)
            };
            let Some(delay) = delay else {
                return Err(error.into());
            };
            failures += 1;
            self.tell(&error, delay);
            tokio::time::sleep(delay).await;
        }
    }

    fn tell(&self, reason: &TransferError, delay: Duration) {
        let event = PullEvent::DiskRetry { reason, delay };
        self.progress.event(event);
    }
}

/// The attempts of one transfer.
struct Attempts<'a> {
    transfer: &'a Transfer<'a>,
    server: Server<'a>,
    what: &'a str,
    /// Not so once it is seen that the server's parts cannot be joined.
    wants_parts: Cell<bool>,
}

impl Attempts<'_> {
    async fn once(&self) -> Result<Transferred, Stop> {
        let mut response = self.first().await?;
        if self.wants_parts.get() && !is_usable(&response) {
            self.wants_parts.set(false);
            response = self.first().await?;
        }
        match response.status() {
            StatusCode::NOT_MODIFIED if self.transfer.known.is_some() => Ok(Transferred::Unchanged),
            StatusCode::PARTIAL_CONTENT if self.wants_parts.get() => self.in_parts(response).await,
            StatusCode::OK => self.whole(response).await,
            _ => Err(self.server.refusal(&response).into()),
        }
    }

    async fn first(&self) -> Result<Response, TransferError> {
        let piece = self.transfer.options.piece.max(1);
        let bytes = self.wants_parts.get().then_some(piece);
        self.server.first(bytes, self.transfer.known).await
    }

    /// Takes what one connection brings for all of it.
    async fn whole(&self, mut response: Response) -> Result<Transferred, Stop> {
        let version = Version::of(response.headers());
        let size = response.content_length();
        self.admit(size.unwrap_or(0))?;
        let landing = self.land(size)?;
        let mut at = 0;
        while let Some(bytes) = self.chunk(&mut response).await? {
            let end = at + bytes.len() as u64;
            self.bounded(end)?;
            landing.land(at, &bytes)?;
            at = end;
        }
        if let Some(size) = size.filter(|size| *size != at) {
            return Err(self.server.truncated(size, at).into());
        }
        let digest = landing.finish()?;
        Ok(Transferred::Whole { digest, version })
    }

    /// Fetches the file over several connections, of which `response` is the first.
    async fn in_parts(&self, response: Response) -> Result<Transferred, Stop> {
        let part = part_of(response.headers());
        let part = part.ok_or_else(|| self.server.wrong_part(&(0..1), &response))?;
        self.admit(part.size)?;
        let landing = self.land(Some(part.size))?;
        let source = self.server.source_of(&response, part.size);
        let mut first = Some(Coming {
            response,
            end: part.range.end,
        });
        let pieces = part.size.div_ceil(self.transfer.options.piece.max(1));
        let connections = self.transfer.options.connections.get();
        let connections =
            usize::try_from(pieces).map_or(connections, |pieces| connections.min(pieces));
        let alive = Cell::new(connections);
        let work =
            (0..connections).map(|_| self.connection(&source, &landing, first.take(), &alive));
        try_join_all(work).await?;
        if !landing.is_whole() {
            // One gave its piece back when all others had ended, or were just about to.
            let alone = Cell::new(1);
            self.connection(&source, &landing, None, &alone).await?;
        }
        let digest = landing.finish()?;
        let version = source.version;
        Ok(Transferred::Whole { digest, version })
    }

    /// Fetches one piece after the other.
    async fn connection(
        &self,
        source: &Source,
        landing: &Landing<'_>,
        mut open: Option<Coming>,
        alive: &Cell<usize>,
    ) -> Result<(), Stop> {
        let mut failures = 0;
        while let Some(mut rest) = landing.take() {
            while !rest.is_empty() {
                let begun = rest.start;
                let had_others = alive.get() > 1;
                let error = match self.piece(source, landing, &mut rest, open.take()).await {
                    Ok(()) => {
                        failures = 0;
                        continue;
                    }
                    Err(Stop::Anew(error)) if source.may_go_on(&error) => error,
                    Err(stop) => return Err(stop),
                };
                if rest.start - begun >= PROGRESS {
                    failures = 0;
                }
                let delay = self.transfer.options.retry;
                let delay = delay.delay(failures, error.retry_after());
                let Some(delay) = delay.filter(|_| error.is_temporary()) else {
                    if !had_others {
                        return Err(Stop::Final(error.into()));
                    }
                    // Servers that serve one address only so many times at once still serve the others.
                    alive.set(alive.get().saturating_sub(1));
                    landing.give_back(rest);
                    return Ok(());
                };
                failures += 1;
                self.transfer.tell(&error, delay);
                tokio::time::sleep(delay).await;
            }
        }
        alive.set(alive.get().saturating_sub(1));
        Ok(())
    }

    /// Takes what one answer brings of `rest`, which is then what is still missing.
    async fn piece(
        &self,
        source: &Source,
        landing: &Landing<'_>,
        rest: &mut Range<u64>,
        open: Option<Coming>,
    ) -> Result<(), Stop> {
        let Coming { mut response, end } = match open {
            Some(coming) => coming,
            None => self.server.part(source, rest).await?,
        };
        while let Some(bytes) = self.chunk(&mut response).await? {
            let next = rest.start + bytes.len() as u64;
            if next > end {
                return Err(self.server.too_much(end).into());
            }
            landing.land(rest.start, &bytes)?;
            rest.start = next;
        }
        match rest.start < end {
            true => Err(self.server.truncated(end, rest.start).into()),
            false => Ok(()),
        }
    }

    async fn chunk(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, TransferError> {
        let chunk = response.chunk().await;
        chunk.map_err(|source| self.server.transport(source))
    }

    fn land(&self, size: Option<u64>) -> Result<Landing<'_>, CloudError> {
        let Transfer {
            file,
            options,
            progress,
            ..
        } = self.transfer;
        Landing::begin(self.what, file, *progress, size, options.piece)
    }

    /// Refuses what is too large, before it comes.
    fn admit(&self, size: u64) -> Result<(), CloudError> {
        self.bounded(size)?;
        let folder = self.transfer.folder;
        // What an earlier attempt has written goes when the next one begins.
        let emptied = self.transfer.file.set_len(0);
        let found = emptied.and_then(|()| Ok(rustix::fs::statvfs(folder)?));
        let found = found.map_err(|source| cannot_keep(self.what, source))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if size > free {
            return Err(CloudError::NoSpace {
                what: self.what.to_owned(),
                size: ByteSize::from_bytes(size),
                free: ByteSize::from_bytes(free),
                folder: folder.to_owned(),
            });
        }
        Ok(())
    }

    fn bounded(&self, size: u64) -> Result<(), CloudError> {
        let limit = self.transfer.options.limit;
        if size > limit {
            return Err(CloudError::TooLarge {
                what: self.what.to_owned(),
                size: ByteSize::from_bytes(size),
                limit: ByteSize::from_bytes(limit),
            });
        }
        Ok(())
    }
}

/// Whether the first answer, of a request for a part, can be gone on from.
fn is_usable(response: &Response) -> bool {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => part_of(response.headers()).is_some_and(|part| {
            let is_all = part.range.end == part.size;
            part.range.start == 0 && (is_all || Version::of(response.headers()).strong().is_some())
        }),
        // An empty file has no part.
        StatusCode::RANGE_NOT_SATISFIABLE => false,
        _ => true,
    }
}

/// Connections at once. Half of what browsers open to a server (6 to 8): mirrors that limit an address allow
/// some 4, and as many fill a path on which a single one waits for its window.
pub(super) const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Bytes that a connection asks for at once: long enough that the pause between two pieces, one round trip, is
/// lost beside it; short enough that what waits to be hashed, a piece a connection, stays in the page cache. A
/// smaller file comes over one connection.
pub(super) const PIECE: u64 = 16 << 20;
