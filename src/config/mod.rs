//! One immutable configuration, made from what was said on four levels.
//!
//! ```text
//! flag  >  environment  >  config file (TOML)  >  default
//! ```
//!
//! Invariant: a [`Config`] is complete, its folders are absolute, and nothing re-reads the
//! environment after it was made. Reading argv, the environment and the file is the caller's job.

use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::EngineName;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;

/// Longest folder of VMs for which the socket paths below it fit into a `sockaddr_un` (108 bytes
/// with the final NUL, less `/vms/<16 digits>/console.sock`).
const MAX_RUN_DIR: usize = 107 - "/vms/0123456789abcdef/console.sock".len();

/// Wait between asking a guest to power off and forcing it; a systemd guest on a slow disk needs
/// about 20 s.
const STOP_TIMEOUT_SECONDS: u64 = 30;

/// Wait for the agent of a clone that had one when it was saved: it has it still, but its memory comes in
/// while it runs, on a busy host and beside many clones slowly.
const IDENTITY_TIMEOUT_SECONDS: u64 = 120;

/// How much cocoon logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the levels are their own names")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

impl LogLevel {
    /// The level's name, as `--log-level` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Everything that can be configured, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Database, blobs, boot files, locks.
    pub root_dir: PathBuf,
    /// One folder per VM: its disk and sockets.
    pub run_dir: PathBuf,
    /// One folder per VM: what its process and its console said.
    pub log_dir: PathBuf,
    /// How much cocoon logs.
    pub log_level: LogLevel,
    /// Where CNI conflists are.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are.
    pub cni_bin_dir: PathBuf,
    /// Root password for cloud images, which have none of their own.
    pub root_password: Option<String>,
    /// Name servers given to guests.
    pub dns: Vec<Ipv4Addr>,
    /// Wait between asking a guest to power off and forcing it.
    pub stop_timeout: Duration,
    /// Wait for the agent of a cloned or restored guest that had one when it was saved.
    pub identity_timeout: Duration,
    /// How many VMs or layers are worked on at once.
    pub pool_size: NonZeroUsize,
    /// The engine of new VMs, or the build's default.
    pub engine: Option<EngineName>,
    /// Where containerd's `hosts.toml` files are, which tell of mirrors and certificates.
    pub registry_config_dir: PathBuf,
    /// UEFI firmware file for cloud images.
    pub firmware: PathBuf,
    /// Whether a KVM that seems unable to run ordinary kernels is used all the same.
    pub ignore_kvm_check: bool,
    /// Whether and how log lines go to a file.
    pub log: LogFile,
}

/// The `[log]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Log to this file instead of standard error.
    pub file: Option<PathBuf>,
    /// Turn it away beyond this size, in MiB.
    pub max_size_mb: u64,
    /// Remove what was turned away after so many days; 0: never.
    pub max_age_days: u64,
    /// Keep so many files that were turned away; 0: all.
    pub max_backups: u64,
    /// One JSON object a line.
    pub json: bool,
}

/// One level's say: what it leaves open is `None`. Also the grammar of the config file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "each field is that of Config, undecided")]
pub struct Settings {
    pub root_dir: Option<PathBuf>,
    pub run_dir: Option<PathBuf>,
    pub log_dir: Option<PathBuf>,
    pub log_level: Option<LogLevel>,
    pub cni_conf_dir: Option<PathBuf>,
    pub cni_bin_dir: Option<PathBuf>,
    pub default_root_password: Option<String>,
    pub dns: Option<DnsList>,
    pub stop_timeout_seconds: Option<u64>,
    pub identity_timeout_seconds: Option<u64>,
    pub pool_size: Option<usize>,
    pub engine: Option<EngineName>,
    pub registry_config_dir: Option<PathBuf>,
    pub firmware: Option<PathBuf>,
    pub ignore_kvm_check: Option<bool>,
    pub log: LogSettings,
}

/// One level's say on the `[log]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "each field is that of LogFile, undecided")]
pub struct LogSettings {
    pub level: Option<LogLevel>,
    pub file: Option<PathBuf>,
    pub max_size_mb: Option<u64>,
    pub max_age_days: Option<u64>,
    pub max_backups: Option<u64>,
    pub json: Option<bool>,
}

/// Name servers: a list, or text separated by commas or semicolons.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "DnsText")]
pub struct DnsList(Vec<Ipv4Addr>);

#[derive(Deserialize)]
#[serde(untagged)]
enum DnsText {
    One(String),
    Many(Vec<String>),
}

impl TryFrom<DnsText> for DnsList {
    type Error = InvalidConfig;

    fn try_from(text: DnsText) -> Result<Self, InvalidConfig> {
        match text {
            DnsText::One(text) => text.parse(),
            DnsText::Many(list) => list.join(",").parse(),
        }
    }
}

impl std::str::FromStr for DnsList {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        let servers = text
            .split([',', ';'])
            .map(str::trim)
            .filter(|item| !item.is_empty());
        let parse = |item: &str| {
            item.parse()
                .map_err(|_| InvalidConfig::Dns(item.to_owned()))
        };
        servers.map(parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Why no configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// The file is not TOML of the right form.
    #[error("{} is not a valid config file", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Names the line.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A name server that is none.
    #[error("{0:?} is not an IPv4 address of a name server")]
    Dns(String),
    /// An environment variable with a value that its setting does not take.
    #[error("{variable}={value} is not valid: {reason}")]
    Variable {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        reason: String,
    },
    /// A number that makes no sense.
    #[error("{key} must be at least 1")]
    Zero {
        /// The key.
        key: &'static str,
    },
    /// Sockets below the run folder would have names longer than the kernel takes.
    #[error("the run folder {} is too long: socket paths below it exceed the kernel's 107 bytes", .0.display())]
    RunDirTooLong(PathBuf),
}

impl Settings {
    /// Reads a config file's text. `file` is named in errors.
    ///
    /// # Errors
    /// The text is not TOML, or has an unknown key or a wrong value; the error names the line.
    pub fn from_toml(text: &str, file: &Path) -> Result<Self, InvalidConfig> {
        let mut settings: Self = toml::from_str(text).map_err(|source| InvalidConfig::File {
            file: file.to_owned(),
            source: Box::new(source),
        })?;
        settings.log_level = settings.log_level.or(settings.log.level);
        Ok(settings)
    }

    /// Reads the environment through `variable`. An empty value counts as unset.
    ///
    /// # Errors
    /// A variable holds what its setting does not take.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, InvalidConfig> {
        let get = |name: &'static str| variable(name).filter(|value| !value.is_empty());
        let path = |name| get(name).map(PathBuf::from);
        Ok(Self {
            root_dir: path("COCOON_ROOT_DIR"),
            run_dir: path("COCOON_RUN_DIR"),
            log_dir: path("COCOON_LOG_DIR"),
            log_level: parsed("COCOON_LOG_LEVEL", get("COCOON_LOG_LEVEL"), parse_level)?,
            cni_conf_dir: path("COCOON_CNI_CONF_DIR"),
            cni_bin_dir: path("COCOON_CNI_BIN_DIR"),
            default_root_password: get("COCOON_DEFAULT_ROOT_PASSWORD"),
            dns: get("COCOON_DNS").map(|text| text.parse()).transpose()?,
            stop_timeout_seconds: parsed(
                "COCOON_STOP_TIMEOUT_SECONDS",
                get("COCOON_STOP_TIMEOUT_SECONDS"),
                parse_number,
            )?,
            identity_timeout_seconds: parsed(
                "COCOON_IDENTITY_TIMEOUT_SECONDS",
                get("COCOON_IDENTITY_TIMEOUT_SECONDS"),
                parse_number,
            )?,
            pool_size: parsed("COCOON_POOL_SIZE", get("COCOON_POOL_SIZE"), parse_number)?,
            engine: parsed("COCOON_ENGINE", get("COCOON_ENGINE"), |text| {
                text.parse().map_err(to_text)
            })?,
            registry_config_dir: path("COCOON_REGISTRY_CONFIG_DIR"),
            firmware: path("COCOON_FIRMWARE"),
            ignore_kvm_check: parsed(
                "COCOON_IGNORE_KVM_CHECK",
                get("COCOON_IGNORE_KVM_CHECK"),
                parse_switch,
            )?,
            log: LogSettings::default(),
        })
    }

    /// What `self` says, and where it says nothing, what `lower` says.
    #[must_use]
    pub fn over(self, lower: Self) -> Self {
        Self {
            root_dir: self.root_dir.or(lower.root_dir),
            run_dir: self.run_dir.or(lower.run_dir),
            log_dir: self.log_dir.or(lower.log_dir),
            log_level: self.log_level.or(lower.log_level),
            cni_conf_dir: self.cni_conf_dir.or(lower.cni_conf_dir),
            cni_bin_dir: self.cni_bin_dir.or(lower.cni_bin_dir),
            default_root_password: self.default_root_password.or(lower.default_root_password),
            dns: self.dns.or(lower.dns),
            stop_timeout_seconds: self.stop_timeout_seconds.or(lower.stop_timeout_seconds),
            identity_timeout_seconds: self
                .identity_timeout_seconds
                .or(lower.identity_timeout_seconds),
            pool_size: self.pool_size.or(lower.pool_size),
            engine: self.engine.or(lower.engine),
            registry_config_dir: self.registry_config_dir.or(lower.registry_config_dir),
            firmware: self.firmware.or(lower.firmware),
            ignore_kvm_check: self.ignore_kvm_check.or(lower.ignore_kvm_check),
            log: LogSettings {
                level: self.log.level.or(lower.log.level),
                file: self.log.file.or(lower.log.file),
                max_size_mb: self.log.max_size_mb.or(lower.log.max_size_mb),
                max_age_days: self.log.max_age_days.or(lower.log.max_age_days),
                max_backups: self.log.max_backups.or(lower.log.max_backups),
                json: self.log.json.or(lower.log.json),
            },
        }
    }

    /// Decides what is still open. `here` makes relative folders absolute.
    ///
    /// # Errors
    /// A value makes no sense by itself.
    pub fn decide(self, here: &Path, host_cpus: NonZeroUsize) -> Result<Config, InvalidConfig> {
        let absolute = |path: PathBuf| here.join(path);
        let root_dir = absolute(self.root_dir.unwrap_or_else(|| "/var/lib/cocoon".into()));
        let run_dir = self.run_dir.map_or_else(|| root_dir.join("run"), absolute);
        if run_dir.as_os_str().len() > MAX_RUN_DIR {
            return Err(InvalidConfig::RunDirTooLong(run_dir));
        }
        let stop_timeout = seconds(
            "stop_timeout_seconds",
            self.stop_timeout_seconds.unwrap_or(STOP_TIMEOUT_SECONDS),
        )?;
        let identity_timeout = seconds(
            "identity_timeout_seconds",
            self.identity_timeout_seconds
                .unwrap_or(IDENTITY_TIMEOUT_SECONDS),
        )?;
        if self.log.max_size_mb == Some(0) {
            return Err(InvalidConfig::Zero {
                key: "log.max_size_mb",
            });
        }
        let pool_size = match self.pool_size {
            Some(size) => {
                NonZeroUsize::new(size).ok_or(InvalidConfig::Zero { key: "pool_size" })?
            }
            None => host_cpus,
        };
        Ok(Config {
            run_dir,
            log_dir: absolute(self.log_dir.unwrap_or_else(|| "/var/log/cocoon".into())),
            log_level: self.log_level.unwrap_or(LogLevel::Info),
            cni_conf_dir: absolute(self.cni_conf_dir.unwrap_or_else(|| "/etc/cni/net.d".into())),
            cni_bin_dir: absolute(self.cni_bin_dir.unwrap_or_else(|| "/opt/cni/bin".into())),
            root_password: self.default_root_password,
            dns: self.dns.map_or_else(
                || vec![Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(1, 1, 1, 1)],
                |list| list.0,
            ),
            stop_timeout,
            identity_timeout,
            pool_size,
            engine: self.engine,
            registry_config_dir: absolute(
                self.registry_config_dir
                    .unwrap_or_else(|| "/etc/containerd/certs.d".into()),
            ),
            firmware: self
                .firmware
                .map_or_else(|| root_dir.join("firmware/CLOUDHV.fd"), absolute),
            ignore_kvm_check: self.ignore_kvm_check.unwrap_or(false),
            log: LogFile {
                file: self.log.file.map(absolute),
                max_size_mb: self.log.max_size_mb.unwrap_or(500),
                max_age_days: self.log.max_age_days.unwrap_or(28),
                max_backups: self.log.max_backups.unwrap_or(3),
                json: self.log.json.unwrap_or(false),
            },
            root_dir,
        })
    }
}

fn parsed<T>(
    variable: &'static str,
    value: Option<String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, InvalidConfig> {
    let parse = |value: String| {
        parse(&value).map_err(|reason| InvalidConfig::Variable {
            variable,
            value,
            reason,
        })
    };
    value.map(parse).transpose()
}

fn parse_level(text: &str) -> Result<LogLevel, String> {
    match text.to_ascii_lowercase().as_str() {
        "debug" => Ok(LogLevel::Debug),
        "info" => Ok(LogLevel::Info),
        "warn" => Ok(LogLevel::Warn),
        "error" => Ok(LogLevel::Error),
        _ => Err("use debug, info, warn or error".to_owned()),
    }
}

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_level(text)
    }
}

/// A wait of at least a second.
fn seconds(key: &'static str, seconds: u64) -> Result<Duration, InvalidConfig> {
    if seconds == 0 {
        return Err(InvalidConfig::Zero { key });
    }
    Ok(Duration::from_secs(seconds))
}

fn parse_number<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(to_text)
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("use 1 or 0".to_owned()),
    }
}

fn to_text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUS: NonZeroUsize = NonZeroUsize::MIN;

    fn decide(settings: Settings) -> Result<Config, InvalidConfig> {
        settings.decide(Path::new("/here"), CPUS)
    }

    fn environment(pairs: &'static [(&str, &str)]) -> Result<Settings, InvalidConfig> {
        Settings::from_environment(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_defaults_are_those_of_the_readme() {
        let config = decide(Settings::default()).unwrap();
        assert_eq!(config.root_dir, Path::new("/var/lib/cocoon"));
        assert_eq!(config.run_dir, Path::new("/var/lib/cocoon/run"));
        assert_eq!(config.log_dir, Path::new("/var/log/cocoon"));
        assert_eq!(config.cni_conf_dir, Path::new("/etc/cni/net.d"));
        assert_eq!(
            config.registry_config_dir,
            Path::new("/etc/containerd/certs.d")
        );
        assert_eq!(config.cni_bin_dir, Path::new("/opt/cni/bin"));
        assert_eq!(
            config.dns,
            [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(1, 1, 1, 1)]
        );
        assert_eq!(config.stop_timeout, Duration::from_secs(30));
        assert_eq!(config.identity_timeout, Duration::from_secs(120));
        assert_eq!(config.log_level, LogLevel::Info);
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file() {
        let file = Settings::from_toml(
            "root_dir = '/file'\nlog_dir = '/file'\npool_size = 7",
            Path::new("c"),
        )
        .unwrap();
        let env = environment(&[("COCOON_ROOT_DIR", "/env"), ("COCOON_LOG_DIR", "/env")]).unwrap();
        let flags = Settings {
            root_dir: Some("/flag".into()),
            ..Settings::default()
        };
        let config = decide(flags.over(env).over(file)).unwrap();
        assert_eq!(config.root_dir, Path::new("/flag"));
        assert_eq!(config.log_dir, Path::new("/env"));
        assert_eq!(config.pool_size.get(), 7);
    }

    #[test]
    fn the_run_folder_follows_the_root_folder_when_only_that_is_given() {
        let config = decide(Settings {
            root_dir: Some("data".into()),
            ..Settings::default()
        })
        .unwrap();
        assert_eq!(config.root_dir, Path::new("/here/data"));
        assert_eq!(config.run_dir, Path::new("/here/data/run"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = Settings::from_toml("pool_size = 1\nrot_dir = '/x'\n", Path::new("c.toml"))
            .unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            source.contains("line 2") && source.contains("rot_dir"),
            "{source}"
        );
    }

    #[test]
    fn dns_takes_commas_semicolons_and_lists() {
        let expected = DnsList(vec![Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)]);
        assert_eq!("9.9.9.9; 1.1.1.1,".parse::<DnsList>().unwrap(), expected);
        let file = Settings::from_toml("dns = ['9.9.9.9', '1.1.1.1']", Path::new("c")).unwrap();
        assert_eq!(file.dns, Some(expected));
        assert!("dns.google".parse::<DnsList>().is_err());
    }

    #[test]
    fn senseless_values_are_refused() {
        assert!(environment(&[("COCOON_POOL_SIZE", "many")]).is_err());
        assert!(environment(&[("COCOON_LOG_LEVEL", "loud")]).is_err());
        assert!(
            decide(Settings {
                pool_size: Some(0),
                ..Settings::default()
            })
            .is_err()
        );
        assert!(
            decide(Settings {
                stop_timeout_seconds: Some(0),
                ..Settings::default()
            })
            .is_err()
        );
        let hasty = environment(&[("COCOON_IDENTITY_TIMEOUT_SECONDS", "0")]).unwrap();
        let error = decide(hasty).unwrap_err().to_string();
        assert_eq!(error, "identity_timeout_seconds must be at least 1");
        let long = Settings {
            run_dir: Some(format!("/{}", "r".repeat(90)).into()),
            ..Settings::default()
        };
        assert!(matches!(decide(long), Err(InvalidConfig::RunDirTooLong(_))));
    }

    #[test]
    fn empty_variables_count_as_unset() {
        assert_eq!(
            environment(&[("COCOON_ROOT_DIR", "")]).unwrap(),
            Settings::default()
        );
    }
}
