//! Where fuzz targets enter: one function each, which takes any bytes.
//!
//! ```text
//! installed:  a disk, as it is                 to begin with: what fuzz/seeds makes
//! grub:       grub.cfg │ NUL │ grubenv │ NUL │ an entry of the Boot Loader Specification
//! ```

use std::io::{self, Error, ErrorKind};
use std::rc::Rc;

use super::bls::{self, BlsEntry};
use super::grub::{Choice, Files, Menu};
use super::{cmdline, find, version};
use crate::disk::ReadAt;

/// A disk in memory.
struct Memory(Vec<u8>);

impl ReadAt for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(into.len());
        let bytes = self.0.get(start..end);
        into.copy_from_slice(bytes.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?);
        Ok(())
    }
}

/// A disk.
pub fn installed(data: &[u8]) {
    let disk: Rc<dyn ReadAt> = Rc::new(Memory(data.to_vec()));
    match find(&disk) {
        Ok(installed) => {
            let said = format!("{installed:?} {} {}", installed.title, installed.kernel);
            assert!(!said.contains(char::is_control), "{said:?}");
            assert!(installed.cmdline.len() <= cmdline::MAX_LINE);
            assert!(!installed.cmdline.contains(char::is_control));
            for size in [
                installed.copy_kernel(&mut io::sink()),
                installed.copy_initrd(&mut io::sink()),
            ] {
                assert!(size.is_err() || size.is_ok_and(|size| size <= 1 << 30));
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
    }
}

/// What a script sees here.
struct Texts<'a> {
    environment: &'a str,
    entry: Option<BlsEntry>,
}

impl Files for Texts<'_> {
    fn read(&self, path: &str) -> Option<String> {
        path.ends_with("grubenv")
            .then(|| self.environment.to_owned())
    }

    fn size(&self, path: &str) -> Option<u64> {
        self.read(path).map(|text| text.len() as u64)
    }

    fn has_folder(&self, path: &str) -> bool {
        path.ends_with("grub")
    }

    fn entries(&self) -> Vec<BlsEntry> {
        self.entry.iter().cloned().collect()
    }
}

/// A boot loader's configuration.
pub fn grub(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut parts = text.splitn(3, '\0');
    let [script, environment, entry] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let files = Texts {
        environment,
        entry: bls::parse("a+1-2.conf", entry),
    };
    let _ = version::compare(environment, entry);
    let menu = Menu::read(script, "/boot/grub", &files);
    if let Ok(Choice::Boot(boot)) = menu.and_then(Menu::choose) {
        assert!(!boot.kernel.is_empty());
        if let Ok(line) = cmdline::build(&boot.arguments, |_| None) {
            assert!(line.len() <= cmdline::MAX_LINE);
        }
    }
}

/// So that the entries stay alive where nobody fuzzes.
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // A look, not a search.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_harm_the_reader_of_disks(mut data in prop::collection::vec(any::<u8>(), 0..4096)) {
            installed(&data);
            if let Some(mark) = data.get_mut(510..512) {
                mark.copy_from_slice(&[0x55, 0xaa]);
                installed(&data);
            }
        }

        #[test]
        fn no_text_harms_the_reader_of_scripts(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "if", "then", "else", "elif", "fi", ";", "\n", "{", "}", "[", "]", "menuentry", "a",
                    "submenu", "linux", "set", "a=$a$a", "$a", "\"", "'", "\\", "${a}", "for", "do", "done",
                    "default=1>0", "blscfg", "load_env", "source", "/boot/grub/grubenv", "-z", "!", "=", "\0",
                ]),
                0..60,
            )
        ) {
            grub(words.join(" ").as_bytes());
        }
    }
}
