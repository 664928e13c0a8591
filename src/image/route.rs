//! The hosts that are asked for an image, one after the other.
//!
//! ```text
//!   tag ─────▶ those that may resolve ─┐  the next one at once, whatever was wrong with this one;
//!   digest ──▶ those that may pull ────┴▶ the last one as often as the policy says
//! ```

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::download;
use super::hosts::{self, HostsError};
use super::progress::{Progress, PullEvent};
use super::reference::Reference;
use super::registry::{RegistryError, Repository};
use super::retry::RetryPolicy;

/// The hosts that have a repository.
pub(crate) struct Route {
    registry: String,
    hosts: Vec<Repository>,
}

/// Hosts that are asked one after the other.
pub(crate) type Others<'a> = VecDeque<&'a Repository>;

/// Why there is no route.
pub(crate) enum NoRoute {
    Hosts(HostsError),
    Registry(RegistryError),
}

/// What a host is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// What a tag means.
    Resolve,
    /// For something with a digest.
    Pull,
}

impl Route {
    /// The route to the repository of `reference`, by the configuration in `folder`.
    pub(crate) fn new(
        reference: &Reference,
        folder: Option<&Path>,
        docker_config: Option<&PathBuf>,
    ) -> Result<Self, NoRoute> {
        let registry = reference.registry();
        let endpoints = hosts::endpoints(folder, registry).map_err(NoRoute::Hosts)?;
        let hosts = endpoints
            .into_iter()
            .map(|at| Repository::new(at, reference.repository(), docker_config.cloned()));
        Ok(Self {
            registry: registry.to_owned(),
            hosts: hosts.collect::<Result<_, _>>().map_err(NoRoute::Registry)?,
        })
    }

    fn may_be_asked(&self, ask: Ask) -> impl Iterator<Item = &Repository> {
        self.hosts.iter().filter(move |host| match ask {
            Ask::Resolve => host.endpoint().resolves,
            Ask::Pull => host.endpoint().pulls,
        })
    }

    /// How many hosts may be asked.
    pub(crate) fn count(&self, ask: Ask) -> usize {
        self.may_be_asked(ask).count()
    }

    /// The host that is asked after so many others, and those after it.
    pub(crate) fn hosts(
        &self,
        ask: Ask,
        after: usize,
    ) -> Result<(&Repository, Others<'_>), RegistryError> {
        let mut hosts: Others<'_> = self.may_be_asked(ask).skip(after).collect();
        let first = hosts.pop_front().ok_or_else(|| RegistryError::NoHost {
            registry: self.registry.clone(),
            what: match ask {
                Ask::Resolve => "say what a tag means",
                Ask::Pull => "be pulled from",
            },
        })?;
        Ok((first, hosts))
    }

    /// Asks one host after the other.
    pub(crate) async fn ask<T>(
        &self,
        ask: Ask,
        policy: &RetryPolicy,
        progress: &dyn Progress,
        attempt: impl AsyncFn(&Repository) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let (mut host, mut others) = self.hosts(ask, 0)?;
        while let Some(next) = others.pop_front() {
            match attempt(host).await {
                Ok(done) => return Ok(done),
                Err(error) => progress.event(PullEvent::NextHost { reason: &error }),
            }
            host = next;
        }
        download::repeat(policy, progress, async || attempt(host).await).await
    }
}
