//! What is told of the work, beside its result: to standard error, or to the configured file, which all
//! commands share.

use std::io::IsTerminal;
use std::sync::Mutex;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::error::Failure;
use crate::config::{Config, LogLevel};
use crate::store::log_file::{Limits, LogFile};
use crate::units::ByteSize;

/// Logs to standard error, or to the configured file.
pub(super) fn begin(config: &Config) -> Result<(), Failure> {
    let level = match config.log_level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    // What libraries say below a warning is for their authors, unless everything was asked for.
    let libraries = if level == LevelFilter::DEBUG {
        level
    } else {
        level.min(LevelFilter::WARN)
    };
    let filter = Targets::new()
        .with_default(libraries)
        .with_target("cocoon", level);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer();
    // Another subscriber can only be there in tests, and then it is the right one.
    let _ = match &config.log.file {
        None => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let layer = layer
                .with_writer(std::io::stderr)
                .with_ansi(colours)
                .with_target(false)
                .without_time();
            registry.with(layer).try_init()
        }
        Some(path) => {
            let file = LogFile::open(path, limits(&config.log));
            let file = file.map_err(|source| Failure::LogFile {
                path: path.clone(),
                source,
            })?;
            let layer = layer.with_writer(Mutex::new(file)).with_ansi(false);
            if config.log.json {
                registry.with(layer.json()).try_init()
            } else {
                registry.with(layer).try_init()
            }
        }
    };
    Ok(())
}

fn limits(config: &crate::config::LogFile) -> Limits {
    Limits {
        size: ByteSize::from_mib(config.max_size_mb),
        age_days: config.max_age_days,
        backups: config.max_backups,
    }
}
