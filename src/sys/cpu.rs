//! The host's processor, as far as a guest's memory may hold decisions that were made by it.

use std::collections::BTreeSet;
use std::io;

use serde::{Deserialize, Serialize};

/// A processor model and what it can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostCpu {
    /// Who made it, such as `AuthenticAMD`.
    pub vendor: String,
    /// Family, model and stepping, as numbers of the vendor's.
    pub model: String,
    /// The name that it gives itself.
    pub name: String,
    /// Its features as the kernel names them, sorted.
    pub features: BTreeSet<String>,
}

impl HostCpu {
    /// The processor that this runs on.
    ///
    /// # Errors
    /// The kernel's description of it cannot be read.
    pub fn of_this_host() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/cpuinfo")?))
    }

    /// The first processor of a `/proc/cpuinfo`, x86's or Arm's (proc(5)). What is not there is empty.
    fn parse(text: &str) -> Self {
        let first = text.split("\n\n").next().unwrap_or_default();
        let value = |keys: [&str; 2]| {
            let mut fields = first.lines().filter_map(|line| line.split_once(':'));
            fields
                .find(|(key, _)| keys.contains(&key.trim()))
                .map(|(_, value)| value.trim())
                .unwrap_or_default()
        };
        let model = [
            value(["cpu family", "CPU architecture"]),
            value(["model", "CPU part"]),
            value(["stepping", "CPU revision"]),
        ];
        Self {
            vendor: value(["vendor_id", "CPU implementer"]).to_owned(),
            model: model.join("/"),
            name: value(["model name", "Processor"]).to_owned(),
            features: value(["flags", "Features"])
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect(),
        }
    }

    /// What `self` can do and `other` cannot: with anything here, a guest that was saved on `self` may
    /// use on `other` what is not there.
    pub fn lacking_in<'a>(&'a self, other: &Self) -> Vec<&'a str> {
        let features = self.features.iter().map(String::as_str);
        features
            .filter(|feature| !other.features.contains(*feature))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n\
        model name\t: AMD EPYC 7763 64-Core Processor\nstepping\t: 1\nflags\t\t: fpu sse2 avx2\n\n\
        processor\t: 1\nvendor_id\t: Other\n";

    const ARM: &str = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n\
        CPU architecture: 8\nCPU part\t: 0xd0c\nCPU revision\t: 1\n";

    #[test]
    fn the_first_processor_of_each_architecture_is_read() {
        let amd = HostCpu::parse(X86);
        assert_eq!(
            (amd.vendor.as_str(), amd.model.as_str(), amd.name.as_str()),
            ("AuthenticAMD", "25/1/1", "AMD EPYC 7763 64-Core Processor")
        );
        assert_eq!(
            amd.features.iter().collect::<Vec<_>>(),
            ["avx2", "fpu", "sse2"]
        );
        let arm = HostCpu::parse(ARM);
        assert_eq!(
            (arm.vendor.as_str(), arm.model.as_str(), arm.features.len()),
            ("0x41", "8/0xd0c/1", 2)
        );
        assert!(!HostCpu::of_this_host().unwrap().features.is_empty());
    }

    #[test]
    fn a_lacking_feature_is_named() {
        let (saved, mut here) = (HostCpu::parse(X86), HostCpu::parse(X86));
        here.features.insert("avx512f".into());
        assert_eq!(saved.lacking_in(&here), [""; 0]);
        assert_eq!(here.lacking_in(&saved), ["avx512f"]);
    }
}
