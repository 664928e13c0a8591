//! The asynchronous half of a layer's pass: one stream out of as many connections as it takes, to as many
//! hosts.
//!
//! Invariant: what goes into the channel is the blob from its first byte on, without gap or
//! repetition as far as the server keeps to HTTP; its digest tells whether it did.

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

use super::decode::Chunk;
use super::manifest::Layer;
use super::progress::{Progress, PullEvent};
use super::registry::{RegistryError, Repository};
use super::retry::{PROGRESS, RetryPolicy};
use super::route::Others;
use crate::sys::failpoint;

/// Runs `attempt` until it succeeds, fails for good or has failed too often. Only what a
/// registry says about itself is repeated: one that cannot be reached at all is told at once.
pub(crate) async fn repeat<T>(
    policy: &RetryPolicy,
    progress: &dyn Progress,
    attempt: impl AsyncFn() -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    let mut failures = 0;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let lasting = !error.is_temporary() || matches!(error, RegistryError::Unreachable { .. });
        let delay = policy.delay(failures, error.retry_after());
        let Some(delay) = delay.filter(|_| !lasting) else {
            return Err(error);
        };
        progress.event(PullEvent::Retry {
            layer: None,
            reason: &error,
            delay,
        });
        tokio::time::sleep(delay).await;
        failures += 1;
    }
}

/// A layer on its way.
pub(crate) struct Download<'a> {
    repository: &'a Repository,
    /// Who is asked when that has failed.
    others: Others<'a>,
    layer: &'a Layer,
    progress: &'a dyn Progress,
    what: String,
    offset: u64,
}

/// How a connection ended without an error.
#[derive(PartialEq, Eq)]
enum Ended {
    /// All bytes are in the channel.
    Complete,
    /// Nobody takes them any more.
    Unwanted,
}

impl<'a> Download<'a> {
    pub(crate) fn new(
        (repository, others): (&'a Repository, Others<'a>),
        layer: &'a Layer,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            repository,
            others,
            layer,
            progress,
            what: format!("layer {}", layer.digest.short()),
            offset: 0,
        }
    }

    /// Sends the whole layer into `to`, and goes on where a connection broke, at the next host if there
    /// is one. Ends early, without an error, if the receiver is gone.
    pub(crate) async fn run(
        mut self,
        policy: &RetryPolicy,
        to: mpsc::Sender<Chunk>,
    ) -> Result<(), RegistryError> {
        let mut failures = 0;
        loop {
            let begun = self.offset;
            let error = match self.connection(&to).await {
                Ok(Ended::Unwanted) => return Ok(()),
                Ok(Ended::Complete) => {
                    // Whoever is gone by now has failed for a reason of its own.
                    let _ = to.send(Chunk::End).await;
                    return Ok(());
                }
                Err(error) => error,
            };
            if let Some(next) = self.others.pop_front() {
                self.progress.event(PullEvent::NextHost { reason: &error });
                self.repository = next;
                continue;
            }
            if self.offset - begun >= PROGRESS {
                failures = 0;
            }
            let delay = policy.delay(failures, error.retry_after());
            let Some(delay) = delay.filter(|_| error.is_temporary()) else {
                return Err(error);
            };
            failures += 1;
            self.progress.event(PullEvent::Retry {
                layer: Some(self.layer.digest),
                reason: &error,
                delay,
            });
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = to.closed() => return Ok(()),
            }
        }
    }

    /// Sends what one connection brings.
    async fn connection(&mut self, to: &mpsc::Sender<Chunk>) -> Result<Ended, RegistryError> {
        let blob = self
            .repository
            .blob(&self.what, &self.layer.digest, self.offset);
        let mut body = match blob.await {
            // The offset is the end of what this server has.
            Err(RegistryError::Refused { status: 416, .. }) => return Err(self.truncated()),
            opened => opened?,
        };
        loop {
            let start = body.start;
            let Some(mut bytes) = body.next(&self.what).await? else {
                break;
            };
            // A server that knows no ranges sends again what is here already.
            let known = usize::try_from(self.offset - start).unwrap_or(usize::MAX);
            bytes.advance(known.min(bytes.len()));
            if !self.pass_on(bytes, to).await? {
                return Ok(Ended::Unwanted);
            }
        }
        if self.offset == self.layer.size {
            return Ok(Ended::Complete);
        }
        Err(self.truncated())
    }

    fn truncated(&self) -> RegistryError {
        RegistryError::Truncated {
            registry: self.repository.registry().to_owned(),
            what: self.what.clone(),
            expected: self.layer.size,
            got: self.offset,
        }
    }

    /// Whether the bytes found a taker.
    async fn pass_on(
        &mut self,
        bytes: Bytes,
        to: &mpsc::Sender<Chunk>,
    ) -> Result<bool, RegistryError> {
        let count = bytes.len() as u64;
        if self.offset.saturating_add(count) > self.layer.size {
            return Err(RegistryError::Oversized {
                registry: self.repository.registry().to_owned(),
                what: self.what.clone(),
                expected: self.layer.size,
            });
        }
        if count > 0 {
            if to.send(Chunk::Bytes(bytes)).await.is_err() {
                return Ok(false);
            }
            if self.offset == 0 {
                failpoint::reach("layer: its first bytes received");
            }
            self.offset += count;
            self.progress.event(PullEvent::LayerAdvanced {
                layer: self.layer.digest,
                bytes: count,
            });
        }
        Ok(true)
    }
}
