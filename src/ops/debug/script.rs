//! The text of the script: a pure function of what is decided.
//!
//! It is one subshell, so that a shell reads it as a whole before it begins, a step that fails ends it, and
//! the shell into which it was pasted stays as it was. No comment has a path in it, nor anything else that could
//! hold a line's end.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use super::super::disk::MKFS_OPTIONS;
use crate::units::ByteSize;
use crate::vm::spec::{Boot, VmSpec};
use crate::vmm::engine::Flag;

/// Ends the specification in the script. No line of JSON is this.
const END: &str = "COCOON";

/// What runs the VM.
#[derive(Debug)]
pub(super) enum Program {
    /// The engine's own program.
    Engines { path: PathBuf, flags: Vec<Flag> },
    /// cocoon, as a VM process.
    Cocoons {
        path: PathBuf,
        spec_file: PathBuf,
        spec: String,
    },
}

/// A script that runs a VM.
#[derive(Debug)]
pub(super) struct Script<'a> {
    pub(super) image: &'a str,
    pub(super) spec: &'a VmSpec,
    /// What the VM's files are in. All paths are text.
    pub(super) folder: &'a Path,
    pub(super) cow: &'a Path,
    /// The image of which it is a copy, if it is one.
    pub(super) base: Option<PathBuf>,
    pub(super) storage: ByteSize,
    pub(super) program: Program,
}

impl Display for Script<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let VmSpec { name, engine, .. } = self.spec;
        writeln!(
            f,
            "# VM {name} (image: {}, engine: {engine}, boot: {})",
            self.image,
            match self.spec.boot {
                Boot::Direct { .. } => "direct kernel",
                Boot::Installed { .. } => "the kernel on its disk",
                Boot::Firmware { .. } => "UEFI firmware",
            }
        )?;
        writeln!(
            f,
            "# None of cocoon's records will know of it: its folder is yours to remove."
        )?;
        writeln!(f, "(\nset -e\numask 077\nmkdir -p {}", path(self.folder))?;
        self.disk(f)?;
        self.nics(f)?;
        self.program(f)?;
        writeln!(f, ")")
    }
}

impl Script<'_> {
    fn disk(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut new = self.cow.as_os_str().to_owned();
        new.push(".new");
        let (cow, new) = (path(self.cow), path(Path::new(&new)));
        writeln!(f, "\n# Its own disk, unless it is there already")?;
        writeln!(f, "if [ ! -e {cow} ]; then")?;
        let size = self.storage.bytes();
        match &self.base {
            None => {
                writeln!(f, "  truncate -s {size} {new}")?;
                writeln!(f, "  mkfs.ext4 {} {new}", MKFS_OPTIONS.join(" "))?;
            }
            Some(base) => {
                writeln!(f, "  qemu-img convert -O raw {} {new}", path(base))?;
                writeln!(f, "  truncate -s '>{size}' {new}")?;
            }
        }
        writeln!(f, "  mv {new} {cow}\nfi")
    }

    /// How to make the TAPs, for the user to do: they are the host's.
    fn nics(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let nics = &self.spec.nics;
        if nics.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\n# Its NICs are these TAPs, which must be there before it starts and lead where you want. `vm run`"
        )?;
        writeln!(
            f,
            "# makes its own, in a network namespace of the VM's, and CNI connects them (--nics 0 for none):"
        )?;
        for nic in nics {
            let many = if nic.queue_pairs > 1 {
                " multi_queue"
            } else {
                ""
            };
            let (tap, mtu) = (&nic.tap, nic.mtu);
            writeln!(f, "#   ip tuntap add dev {tap} mode tap vnet_hdr{many}")?;
            writeln!(f, "#   ip link set dev {tap} mtu {mtu} up")?;
        }
        Ok(())
    }

    fn program(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.program {
            Program::Engines {
                path: program,
                flags,
            } => {
                if let Some(vsock) = &self.spec.vsock {
                    writeln!(f, "\n# A run that was killed leaves it in the way")?;
                    writeln!(f, "rm -f {}", path(&vsock.socket))?;
                }
                writeln!(f, "\n# Its console is this terminal")?;
                write!(f, "{}", path(program))?;
                flags.iter().try_for_each(|given| flag(f, given))?;
                writeln!(f)
            }
            Program::Cocoons {
                path: program,
                spec_file,
                spec,
            } => {
                let spec_file = path(spec_file);
                writeln!(
                    f,
                    "\n# Its console is this terminal; ^] and then . ends the VM"
                )?;
                writeln!(f, "cat >{spec_file} <<'{END}'\n{spec}\n{END}")?;
                writeln!(f, "{} __vmm {spec_file}", path(program))
            }
        }
    }
}

/// A flag on a line of its own; several values have each their own, too.
fn flag(f: &mut Formatter<'_>, flag: &Flag) -> fmt::Result {
    write!(f, " \\\n  {}", flag.name)?;
    let between = if flag.values.len() > 1 {
        " \\\n    "
    } else {
        " "
    };
    flag.values
        .iter()
        .try_for_each(|value| write!(f, "{between}{}", quoted(value)))
}

fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// `text` as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    /// What `ops::start` writes for a VM with two layers and a NIC.
    fn spec() -> VmSpec {
        let text = include_str!("../../../vmm-glue/tests/golden/oci.spec.json");
        serde_json::from_str(text).unwrap()
    }

    fn script(spec: &VmSpec, program: Program) -> String {
        Script {
            image: "docker.io/library/web:1",
            spec,
            folder: Path::new("/home/me/it's here"),
            cow: Path::new("/home/me/it's here/cow.raw"),
            base: None,
            storage: ByteSize::from_mib(512),
            program,
        }
        .to_string()
    }

    fn flag(name: &'static str, values: &[&str]) -> Flag {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Flag { name, values }
    }

    #[test]
    fn a_program_of_the_engine_is_run_with_its_flags() {
        let mut spec = spec();
        spec.nics.clear();
        let program = Program::Engines {
            path: "cloud-hypervisor".into(),
            flags: vec![
                flag("--cmdline", &["console=hvc0 rw"]),
                flag("--disk", &["path=/a", "path=\"/b c\""]),
                flag("--watchdog", &[]),
            ],
        };
        assert_eq!(
            script(&spec, program),
            r#"# VM web (image: docker.io/library/web:1, engine: cloud-hypervisor, boot: direct kernel)
# None of cocoon's records will know of it: its folder is yours to remove.
(
set -e
umask 077
mkdir -p '/home/me/it'\''s here'

# Its own disk, unless it is there already
if [ ! -e '/home/me/it'\''s here/cow.raw' ]; then
  truncate -s 536870912 '/home/me/it'\''s here/cow.raw.new'
  mkfs.ext4 -F -q -m 0 -E lazy_itable_init=1,lazy_journal_init=1,discard '/home/me/it'\''s here/cow.raw.new'
  mv '/home/me/it'\''s here/cow.raw.new' '/home/me/it'\''s here/cow.raw'
fi

# A run that was killed leaves it in the way
rm -f /var/lib/cocoon/run/vms/0123456789abcdef/vsock.sock

# Its console is this terminal
cloud-hypervisor \
  --cmdline 'console=hvc0 rw' \
  --disk \
    path=/a \
    'path="/b c"' \
  --watchdog
)
"#
        );
    }

    #[test]
    fn cocoon_is_run_with_the_specification_as_it_is() {
        let spec = spec();
        let text = "{\n  \"it's\": \"$HOME\\\\\"\n}";
        let program = Program::Cocoons {
            path: "/opt/cocoon".into(),
            spec_file: "/home/me/it's here/spec.json".into(),
            spec: text.into(),
        };
        let script = script(&spec, program);
        let end = r#"
# Its NICs are these TAPs, which must be there before it starts and lead where you want. `vm run`
# makes its own, in a network namespace of the VM's, and CNI connects them (--nics 0 for none):
#   ip tuntap add dev tap0 mode tap vnet_hdr multi_queue
#   ip link set dev tap0 mtu 1450 up

# Its console is this terminal; ^] and then . ends the VM
cat >'/home/me/it'\''s here/spec.json' <<'COCOON'
{
  "it's": "$HOME\\"
}
COCOON
/opt/cocoon __vmm '/home/me/it'\''s here/spec.json'
)
"#;
        assert!(script.ends_with(end), "{script}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        #[test]
        fn a_shell_reads_any_word_as_it_was(text in "[^\0]{0,12}") {
            let command = format!("printf %s {}", quoted(&text));
            let output = Command::new("sh").arg("-c").arg(command).output().unwrap();
            prop_assert_eq!(output.stdout, text.into_bytes());
        }
    }
}
