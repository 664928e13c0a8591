//! Use cases, one file each: the order of steps, what undoes them, the locks across stores.
//!
//! This is the only place where images, networks, consoles and engines meet. Every operation
//! checks everything first, then acts, and undoes in reverse what it did when a later step fails.
//! What a killed operation leaves is a row in state `creating`, `saving` or `removing` whose lock is free;
//! `gc` finishes it.

pub mod attach;
pub mod clone;
mod control;
pub mod copy;
pub mod create;
pub mod debug;
mod disk;
pub mod disk_images;
pub mod doctor;
mod error;
pub mod exec;
pub mod export;
mod first_boot;
pub mod gc;
pub mod grow;
pub mod identity;
pub mod images;
pub mod import;
pub mod import_image;
pub mod inspect;
mod installed_kernel;
mod leftover;
pub mod list;
pub mod logs;
pub mod names;
pub mod pause;
pub mod pull;
pub mod remove;
pub mod restore;
pub mod save;
pub mod snapshots;
mod specify;
mod staging;
pub mod start;
pub mod status;
pub mod stop;
mod undo;
pub mod vm_process;
pub mod watch;

pub use error::Error;

use std::sync::Arc;

use crate::config::Config;
use crate::network::Plugins;
use crate::store::{Layout, Pool, Pooled};
use crate::units::{EngineName, VmId};
use crate::vm::records;
use crate::vmm::Engine;

/// What every operation works with: the configuration, the layout it implies, and the engines.
#[derive(Clone, Debug)]
pub struct Host {
    /// Everything that can be configured.
    pub config: Config,
    /// Every path.
    pub layout: Layout,
    engines: Vec<&'static dyn Engine>,
    databases: Arc<Pool>,
}

impl Host {
    /// Makes the folders that are missing.
    ///
    /// # Errors
    /// A folder cannot be made.
    pub fn open(config: Config, engines: &[&'static dyn Engine]) -> Result<Self, Error> {
        let layout = Layout::new(&config.root_dir, &config.run_dir, &config.log_dir);
        layout.prepare()?;
        Ok(Self {
            databases: Arc::new(Pool::new(layout.root())),
            config,
            layout,
            engines: engines.to_vec(),
        })
    }

    /// The engines that this build links, the default one first.
    pub fn engines(&self) -> &[&'static dyn Engine] {
        &self.engines
    }

    /// The engine `name`, or the default one: the configured, else the build's first.
    ///
    /// # Errors
    /// This build does not link it, or links none.
    pub fn engine(&self, name: Option<EngineName>) -> Result<&'static dyn Engine, Error> {
        match name.or(self.config.engine) {
            None => self.engines.first().copied().ok_or(Error::NoEngine),
            Some(name) => {
                let found = self.engines.iter().find(|engine| engine.name() == name);
                found.copied().ok_or(Error::EngineNotLinked(name))
            }
        }
    }

    /// The CNI plugins.
    pub fn plugins(&self) -> Plugins {
        Plugins::new(&self.config.cni_bin_dir)
    }

    /// A connection to the database.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn database(&self) -> Result<Pooled<'_>, Error> {
        Ok(self.databases.get()?)
    }

    /// The VM that a user means.
    ///
    /// # Errors
    /// It is unknown or ambiguous.
    pub fn resolve(&self, reference: &str) -> Result<VmId, Error> {
        Ok(self
            .database()?
            .read(|tx| records::resolve(tx, reference))?)
    }

    /// The VMs that a user means, each once, in the order and by the name of first mention.
    ///
    /// # Errors
    /// Any of them is unknown or ambiguous: then nothing should be done to the others either.
    pub fn resolve_all<'a>(&self, references: &'a [String]) -> Result<Vec<(VmId, &'a str)>, Error> {
        self.database()?
            .read(|tx| each_once(references, |reference| Ok(records::resolve(tx, reference)?)))
    }
}

/// What each of `references` means, each thing once, in the order and by the name of first mention.
///
/// # Errors
/// `resolve` failed for one of them.
fn each_once<'a, T: PartialEq>(
    references: &'a [String],
    mut resolve: impl FnMut(&'a str) -> Result<T, Error>,
) -> Result<Vec<(T, &'a str)>, Error> {
    let mut found: Vec<(T, &str)> = Vec::new();
    for reference in references {
        let thing = resolve(reference)?;
        if !found.iter().any(|(known, _)| *known == thing) {
            found.push((thing, reference));
        }
    }
    Ok(found)
}

/// Refuses a user who may not make namespaces, devices and KVM guests.
///
/// # Errors
/// The effective user is not root.
pub fn require_root() -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(Error::NotRoot)
    }
}

/// Runs `work` for each of `items`, at most `width` at a time, and returns the results in order.
pub fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    width: usize,
    work: impl Fn(&I) -> T + Sync,
) -> Vec<T> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results: Vec<_> = items.iter().map(|_| std::sync::Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..width.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(item);
                    if let Ok(mut place) = results[index].lock() {
                        *place = Some(result);
                    }
                }
            });
        }
    });
    // A worker that panics takes the scope, and so this thread, with it: every place is filled.
    results
        .into_iter()
        .filter_map(|place| place.into_inner().ok().flatten())
        .collect()
}
