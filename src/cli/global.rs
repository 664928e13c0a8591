//! Global flags, and the configuration that they, the environment and the config file make.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::error::Failure;
use crate::config::{Config, DnsList, LogLevel, Settings};

/// No config file is larger.
const MAX_CONFIG: u64 = 1 << 20;

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct GlobalArgs {
    /// Config file (TOML)
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for persistent data [env: COCOON_ROOT_DIR] [default: /var/lib/cocoon]
    #[arg(long, global = true, value_name = "DIR")]
    root_dir: Option<PathBuf>,
    /// Folder for the VMs' disks and sockets [env: COCOON_RUN_DIR] [default: <root-dir>/run]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Folder for VM logs [env: COCOON_LOG_DIR] [default: /var/log/cocoon]
    #[arg(long, global = true, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Log level: debug, info, warn, error [env: COCOON_LOG_LEVEL] [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    /// Folder with CNI configurations [env: COCOON_CNI_CONF_DIR] [default: /etc/cni/net.d]
    #[arg(long, global = true, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Folder with CNI plugins [env: COCOON_CNI_BIN_DIR] [default: /opt/cni/bin]
    #[arg(long, global = true, value_name = "DIR")]
    cni_bin_dir: Option<PathBuf>,
    /// Root password for cloud images (cloud-init 22.3 or later) [env: COCOON_DEFAULT_ROOT_PASSWORD]
    #[arg(long, global = true, value_name = "PASSWORD")]
    root_password: Option<String>,
    /// Name servers for VMs, separated by commas [env: COCOON_DNS] [default: 8.8.8.8,1.1.1.1]
    #[arg(long, global = true, value_name = "IP,...")]
    dns: Option<DnsList>,
}

impl GlobalArgs {
    /// Those alone that say where records are.
    pub(super) fn of_records(config: Option<PathBuf>, root_dir: Option<PathBuf>) -> Self {
        Self {
            config,
            root_dir,
            ..Self::default()
        }
    }

    /// Flags over environment over config file over defaults.
    pub(super) fn config(self) -> Result<Config, Failure> {
        let file = match &self.config {
            None => Settings::default(),
            Some(path) => Settings::from_toml(&read_config(path)?, path)?,
        };
        let environment = Settings::from_environment(|name| std::env::var(name).ok())?;
        let flags = Settings {
            root_dir: self.root_dir,
            run_dir: self.run_dir,
            log_dir: self.log_dir,
            log_level: self.log_level,
            cni_conf_dir: self.cni_conf_dir,
            cni_bin_dir: self.cni_bin_dir,
            default_root_password: self.root_password,
            dns: self.dns,
            ..Settings::default()
        };
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let host_cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Ok(flags
            .over(environment)
            .over(file)
            .decide(&here, host_cpus)?)
    }
}

fn read_config(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_CONFIG).read_to_string(&mut text));
    read.map_err(|source| Failure::ConfigFile {
        path: path.to_owned(),
        source,
    })?;
    Ok(text)
}
