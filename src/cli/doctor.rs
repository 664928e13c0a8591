//! `cocoon doctor`

use std::io::Read;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde_json::json;

use super::cancel;
use super::error::Failure;
use super::output::{self, FormatArgs};
use crate::config::Config;
use crate::ops::doctor::manifest::Manifest;
use crate::ops::doctor::repair::{self, DEFAULT_SUBNET, LONGEST_PREFIX, Repair};
use crate::ops::doctor::{self, Finding, Verdict, upgrade};
use crate::ops::{self};

/// No manifest is larger.
const MAX_MANIFEST: u64 = 1 << 20;

/// What `cocoon doctor` takes.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// Repair what can be repaired: folders, kernel modules, ip_forward, iptables rules, a CNI
    /// configuration; nothing that you have is replaced
    #[arg(long)]
    fix: bool,
    /// Repair, and install firmware and CNI plugins, each known by its SHA-256
    #[arg(long)]
    upgrade: bool,
    /// Addresses of guests, for a CNI configuration that --fix writes
    #[arg(long, value_name = "CIDR", default_value_t = DEFAULT_SUBNET, value_parser = subnet)]
    subnet: Ipv4Net,
    /// Install what this manifest lists instead of the built-in one (firmware/manifest.toml)
    #[arg(long, value_name = "FILE", requires = "upgrade")]
    manifest: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
}

fn subnet(text: &str) -> Result<Ipv4Net, String> {
    let parsed = text.parse::<Ipv4Net>();
    let subnet = parsed.map_err(|_| "write addresses and a prefix, such as 10.88.0.0/16")?;
    if (1..=LONGEST_PREFIX).contains(&subnet.prefix_len()) {
        Ok(subnet.trunc())
    } else {
        Err(format!(
            "the prefix must be /1 to /{LONGEST_PREFIX}, to have room for guests"
        ))
    }
}

/// What was done before the checks whose outcome is shown.
#[derive(Default)]
struct Done {
    repairs: Vec<Repair>,
    kept: Vec<PathBuf>,
    failures: Vec<Failure>,
}

/// Checks, repairs if asked to, and then checks again.
pub(super) fn doctor(config: &Config, args: &DoctorArgs) -> Result<(), Failure> {
    let mut done = Done::default();
    if args.fix || args.upgrade {
        repair::require_root().map_err(ops::Error::from)?;
        let manifest = args.upgrade.then(|| manifest(args.manifest.as_deref()));
        let manifest = manifest.transpose()?;
        let found = doctor::check(config);
        let outcome = repair::repair(config, &found, args.subnet).map_err(ops::Error::from)?;
        done.repairs.extend(outcome.repairs);
        let failures = outcome.failures.into_iter().map(ops::Error::from);
        done.failures.extend(failures.map(Failure::from));
        if let Some(manifest) = manifest {
            install(config, &manifest, &mut done)?;
        }
    }
    let findings = doctor::check(config);
    show(args, &findings, &done)?;
    let count = count_of(&findings, Verdict::Fail);
    if count > 0 {
        let repaired = args.fix || args.upgrade;
        done.failures.push(Failure::Unhealthy { count, repaired });
    }
    Failure::all(done.failures)
}

fn manifest(path: Option<&Path>) -> Result<Manifest, Failure> {
    let parsed = match path {
        None => Manifest::built_in(),
        Some(path) => {
            let mut text = String::new();
            let file = std::fs::File::open(path);
            file.and_then(|file| file.take(MAX_MANIFEST).read_to_string(&mut text))
                .map_err(|source| Failure::ManifestFile {
                    path: path.to_owned(),
                    source,
                })?;
            Manifest::parse(&text)
        }
    };
    Ok(parsed.map_err(ops::Error::from)?)
}

fn install(config: &Config, manifest: &Manifest, done: &mut Done) -> Result<(), Failure> {
    let (_, cancel) = cancel::on_interrupt()?;
    let begin = |entry: &doctor::manifest::Entry| {
        output::note(format_args!(
            "fetching {} {} from {}",
            entry.name, entry.version, entry.url
        ));
    };
    let upgraded = upgrade::upgrade(config, manifest, &cancel, &begin).map_err(ops::Error::from)?;
    done.repairs.extend(upgraded.repairs);
    done.kept.extend(upgraded.kept);
    let failures = upgraded.failures.into_iter().map(ops::Error::from);
    done.failures.extend(failures.map(Failure::from));
    Ok(())
}

fn count_of(findings: &[Finding], verdict: Verdict) -> usize {
    let of_it = |finding: &&Finding| finding.verdict == verdict;
    findings.iter().filter(of_it).count()
}

fn show(args: &DoctorArgs, findings: &[Finding], done: &Done) -> Result<(), Failure> {
    if args.format.is_json() {
        let failed: Vec<_> = done.failures.iter().map(Failure::line).collect();
        return output::json(&json!({
            "checks": findings,
            "repaired": done.repairs,
            "kept": done.kept,
            "failed": failed,
        }));
    }
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Pass => "PASS",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        output::line(format_args!(
            "{verdict}  {:<20}{}",
            finding.name, finding.says
        ));
        if let Some(fix) = &finding.fix {
            output::line(format_args!("{:26}fix: {fix}", ""));
        }
    }
    for repair in &done.repairs {
        output::note(format_args!("fixed {}: {}", repair.name, repair.did));
    }
    for path in &done.kept {
        output::note(format_args!(
            "kept {}, which cocoon has not installed; remove it to have it replaced",
            path.display()
        ));
    }
    output::note(format_args!(
        "{} passed, {} warnings, {} failed",
        count_of(findings, Verdict::Pass),
        count_of(findings, Verdict::Warn),
        count_of(findings, Verdict::Fail)
    ));
    Ok(())
}
