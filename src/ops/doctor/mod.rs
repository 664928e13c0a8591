//! `doctor`: whether this host can run VMs, and how well; and what to do about it.
//!
//! ```text
//!  facts ─────────▶ judgement (pure) ─▶ Finding {name, verdict, says, fix}
//!  host.rs           user, processor, KVM and its costs, userfaultfd, huge pages
//!  network.rs        TUN, devices, CNI, forwarding
//!  firewall.rs       what the FORWARD chains let through
//!  storage.rs        folders, space, shared blocks, mkfs.ext4, firmware
//!
//!  repair.rs         --fix: folders, modules, ip_forward, rules, a conflist       ─▶ check again
//!  upgrade.rs        --upgrade: files of firmware/manifest.toml, known by SHA-256 ─▶ check again
//! ```
//! `doctor/check.sh` has the same checks by the same names, for a host without this program.
//!
//! Invariants:
//! - A check changes nothing: what it tries has no name and goes by itself. It needs no root, but sees
//!   less without.
//! - A repair never replaces what a user has; one that was done is not done again.

mod firewall;
mod host;
pub mod manifest;
mod network;
pub mod repair;
mod storage;
pub mod upgrade;

use serde::Serialize;

use super::vm_process::chain;
use crate::config::Config;

/// How the names of files begin that are not complete yet: who finds one while holding the lock of `doctor`
/// has found what a killed one left.
const UNFINISHED: &str = ".tmp-cocoon-";

/// How a requirement is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is met.
    Pass,
    /// VMs run, but slower or with less than they could; or it could not be checked.
    Warn,
    /// Some or all VMs do not run.
    Fail,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check; the same for ever.
    pub name: &'static str,
    /// How the requirement is met.
    pub verdict: Verdict,
    /// What was found.
    pub says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn pass(name: &'static str, says: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Pass,
            says: says.into(),
            fix: None,
        }
    }

    fn warn(name: &'static str, says: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            fix: Some(fix.into()),
            ..Self::pass(name, says)
        }
    }

    fn fail(name: &'static str, says: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(name, says, fix)
        }
    }
}

/// Runs every check, always the same ones in the same order.
pub fn check(config: &Config) -> Vec<Finding> {
    let mut findings = host::check(config);
    findings.extend(network::check(config));
    findings.extend(storage::check(config));
    findings
}

/// An error and its sources in one line.
fn line(error: &dyn std::error::Error) -> String {
    chain(error).join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_name_of_its_own_and_whatever_is_wrong_a_fix() {
        let dir = tempfile::tempdir().unwrap();
        let settings = crate::config::Settings {
            root_dir: Some(dir.path().join("root")),
            cni_conf_dir: Some(dir.path().join("conf")),
            ..Default::default()
        };
        let config = settings.decide(dir.path(), std::num::NonZeroUsize::MIN);
        let findings = check(&config.unwrap());
        let mut names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), findings.len());
        for finding in &findings {
            let is_well = finding.verdict == Verdict::Pass;
            assert_eq!(finding.fix.is_none(), is_well, "{finding:?}");
        }
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 0, "a check has left something");
    }
}
