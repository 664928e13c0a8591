//! The kernel command line of an installed system, for a boot without its boot loader.
//!
//! ```text
//! linux /vmlinuz root=/dev/sda1 ro console=tty0 console=ttyS0 quiet
//!   ─▶  {console} root=UUID=… ro quiet
//! ```
//! What names a console goes, since the engine says which there is. A disk that was `sda` or `nvme0n1` is
//! `vda` here: a root that is named so gets the name of its file system. All else stays.

use crate::vm::spec::CONSOLE_TOKEN;

/// Bytes of a command line: x86's `COMMAND_LINE_SIZE` of 2048, without room for the NUL at its end and for
/// what the engine writes where the console's token stands.
pub(super) const MAX_LINE: usize = 2048 - 64;

/// Arguments that are left out, by how they begin.
const LEFT_OUT: [&str; 5] = [
    "console=",
    "earlyprintk",
    "earlycon",
    "BOOT_IMAGE=",
    "initrd=",
];

/// Why there is no command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CmdlineError {
    TooLong,
    ControlCharacter,
    NoRoot,
}

/// The command line for `arguments`. `root` names a partition by its number, or the one that is known to
/// hold the root file system.
pub(super) fn build(
    arguments: &[String],
    root: impl Fn(Option<u32>) -> Option<String>,
) -> Result<String, CmdlineError> {
    let is_kept =
        |word: &&String| !word.is_empty() && !LEFT_OUT.iter().any(|begin| word.starts_with(begin));
    let mut line = CONSOLE_TOKEN.to_owned();
    let mut has_root = false;
    for word in arguments.iter().filter(is_kept) {
        line.push(' ');
        match word.strip_prefix("root=") {
            Some(device) => {
                has_root = true;
                line.push_str("root=");
                line.push_str(&stable(device, &root));
            }
            // As GRUB gives them to the kernel, which knows double quotes alone.
            None if word.contains(char::is_whitespace) => {
                line.extend(["\"", word, "\""]);
            }
            None => line.push_str(word),
        }
    }
    if !has_root {
        let root = root(None).ok_or(CmdlineError::NoRoot)?;
        line.extend([" root=", &root]);
    }
    if line.contains(char::is_control) {
        return Err(CmdlineError::ControlCharacter);
    }
    if line.len() > MAX_LINE {
        return Err(CmdlineError::TooLong);
    }
    Ok(line)
}

/// `device`, by a name that it has here, too.
fn stable(device: &str, root: impl Fn(Option<u32>) -> Option<String>) -> String {
    match partition_of(device) {
        None => device.to_owned(),
        Some(None) => root(None).unwrap_or_else(|| "/dev/vda".to_owned()),
        Some(Some(number)) => root(Some(number)).unwrap_or_else(|| format!("/dev/vda{number}")),
    }
}

/// The number of a disk's partition, or none for the disk; nothing if it is no disk's name.
fn partition_of(device: &str) -> Option<Option<u32>> {
    let name = device.strip_prefix("/dev/")?;
    let disk = name.trim_end_matches(|it: char| it.is_ascii_digit());
    let number = &name[disk.len()..];
    if ["sd", "hd", "vd", "xvd"].iter().any(|kind| {
        disk.strip_prefix(kind)
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|it| it.is_ascii_lowercase()))
    }) {
        return Some(number.parse().ok());
    }
    if !name.starts_with("nvme") && !name.starts_with("mmcblk") {
        return None;
    }
    Some(disk.strip_suffix('p').and_then(|_| number.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &str) -> Result<String, CmdlineError> {
        let arguments: Vec<_> = arguments.split(',').map(str::to_owned).collect();
        build(&arguments, |number| match number {
            None => Some("UUID=it".to_owned()),
            Some(1) => Some("UUID=1".to_owned()),
            Some(_) => None,
        })
    }

    #[test]
    fn consoles_go_and_roots_get_names_that_hold_here() {
        let table = [
            ("root=UUID=a,ro,quiet,splash", "root=UUID=a ro quiet splash"),
            (
                "console=tty0,root=PARTUUID=a,console=ttyS0,115200,ro",
                "root=PARTUUID=a 115200 ro",
            ),
            (
                "earlyprintk=ttyS0,root=LABEL=cloudimg-rootfs,,ro",
                "root=LABEL=cloudimg-rootfs ro",
            ),
            ("root=/dev/sda1,ro", "root=UUID=1 ro"),
            ("root=/dev/nvme0n1p1", "root=UUID=1"),
            ("root=/dev/mmcblk0p7", "root=/dev/vda7"),
            ("root=/dev/xvda", "root=UUID=it"),
            ("root=/dev/nvme0n1", "root=UUID=it"),
            ("root=/dev/vdb3", "root=/dev/vda3"),
            ("root=/dev/mapper/vg-root", "root=/dev/mapper/vg-root"),
            ("ro", "ro root=UUID=it"),
            ("", "root=UUID=it"),
            ("dyndbg=file a +p,root=a", "\"dyndbg=file a +p\" root=a"),
            ("BOOT_IMAGE=/vmlinuz,root=a,initrd=\\initrd", "root=a"),
        ];
        for (arguments, expected) in table {
            assert_eq!(
                line(arguments),
                Ok(format!("{{console}} {expected}")),
                "{arguments}"
            );
        }
    }

    #[test]
    fn a_line_that_the_kernel_would_not_take_is_refused() {
        assert_eq!(line(&"a".repeat(MAX_LINE)), Err(CmdlineError::TooLong));
        assert_eq!(line("a\u{1b}[2J"), Err(CmdlineError::ControlCharacter));
        assert_eq!(build(&[], |_| None), Err(CmdlineError::NoRoot));
        let longest = "a".repeat(MAX_LINE - "{console}  root=UUID=it".len());
        assert_eq!(line(&longest).map(|line| line.len()), Ok(MAX_LINE));
    }
}
