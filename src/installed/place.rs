//! A folder in which a system keeps its kernels and says which one boots: `/boot`, or a partition of its own.
//!
//! ```text
//! <base>/grub/grub.cfg, grub2/grub.cfg           what GRUB would do
//! <base>/loader/entries/*.conf                   entries alone, of which grubenv may name one
//! <base>/vmlinuz-<version>                       neither: the newest, with the initrd of its version
//! ```

use std::rc::Rc;

use ext4_view::Ext4Error;

use super::bls::{self, BlsEntry};
use super::ext4::Volume;
use super::grub::{self, Boot, Choice, Files, Menu};
use super::{InstalledError, MAX_CONFIG, PathInImage, version};

/// Entries that are read; a machine with more kernels has none of its old ones removed.
const MAX_ENTRIES: usize = 256;

/// Folders of GRUB, below `/boot`.
const GRUB_FOLDERS: [&str; 2] = ["grub", "grub2"];

/// What stands before and behind a kernel's version in the name of its initrd: of Debian, of Fedora, of
/// openSUSE, of Alpine.
const INITRDS: [(&str, &str); 4] = [
    ("initrd.img", ""),
    ("initramfs", ".img"),
    ("initrd", ""),
    ("initramfs", ""),
];

/// Where to look for a kernel.
#[derive(Debug)]
pub(super) struct Place {
    /// The partition of `/boot`.
    volume: Rc<Volume>,
    /// `/boot` in it, or nothing where it is a partition of its own.
    base: &'static str,
    /// Where files are looked for that are not on it.
    others: Vec<Rc<Volume>>,
    /// What the system is called, for the title of a kernel that nothing gives one.
    system: String,
}

/// Whether `volume` looks like a `/boot` of its own.
pub(super) fn is_boot(volume: &Volume) -> Result<bool, Ext4Error> {
    for folder in GRUB_FOLDERS {
        if volume.file(&format!("/{folder}/grub.cfg"))?.is_some() {
            return Ok(true);
        }
    }
    let has_entries = volume
        .names("/loader/entries")?
        .iter()
        .any(|it| it.ends_with(".conf"));
    Ok(has_entries
        || volume
            .names("/")?
            .iter()
            .any(|it| it.starts_with("vmlinuz")))
}

impl Place {
    pub(super) fn new(
        volume: &Rc<Volume>,
        base: &'static str,
        others: &[Rc<Volume>],
        system: &str,
    ) -> Self {
        let is_other = |other: &&Rc<Volume>| !Rc::ptr_eq(other, volume);
        Self {
            volume: Rc::clone(volume),
            base,
            others: others.iter().filter(is_other).cloned().collect(),
            system: system.to_owned(),
        }
    }

    /// What boots from here; nothing if there is no kernel.
    pub(super) fn choose(&self) -> Result<Option<Boot>, InstalledError> {
        for folder in GRUB_FOLDERS {
            let prefix = format!("{}/{folder}", self.base);
            let path = format!("{prefix}/grub.cfg");
            let Some(text) = self.config(&path)? else {
                continue;
            };
            let menu = Menu::read(&text, &prefix, self);
            if let Some(boot) = chosen(menu.and_then(Menu::choose), path)? {
                return Ok(Some(boot));
            }
        }
        let entries = self.bls_entries()?;
        if !entries.is_empty() {
            let menu = Menu::of_entries(entries, self.environment(), self);
            return chosen(menu.choose(), format!("{}/loader/entries", self.base));
        }
        self.newest()
    }

    /// Where the file that a loader would read at `path` is.
    pub(super) fn locate(&self, path: &str) -> Result<Option<PathInImage>, InstalledError> {
        let path = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((_device, path)) => path,
            None => path,
        };
        // A partition of its own may be told of as it is mounted, too.
        let mounted = path.strip_prefix("/boot/").filter(|_| self.base.is_empty());
        for volume in std::iter::once(&self.volume).chain(&self.others) {
            for path in std::iter::once(path).chain(mounted) {
                let found = volume
                    .file(path)
                    .map_err(|source| reading(volume, path, source))?;
                if let Some((path, size)) = found {
                    return Ok(Some(PathInImage::new(path, size, Rc::clone(volume))));
                }
            }
        }
        Ok(None)
    }

    /// The text of a configuration, if it is there.
    fn config(&self, path: &str) -> Result<Option<String>, InstalledError> {
        let Some(file) = self.locate(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.copy(MAX_CONFIG, &mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn names(&self, folder: &str) -> Result<Vec<String>, InstalledError> {
        let names = self.volume.names(folder);
        names.map_err(|source| reading(&self.volume, folder, source))
    }

    fn bls_entries(&self) -> Result<Vec<BlsEntry>, InstalledError> {
        let folder = format!("{}/loader/entries", self.base);
        let mut entries = Vec::new();
        for name in self.names(&folder)?.iter().take(MAX_ENTRIES) {
            if name.ends_with(".conf") {
                let text = self.config(&format!("{folder}/{name}"))?;
                entries.extend(text.and_then(|text| bls::parse(name, &text)));
            }
        }
        bls::sort(&mut entries);
        Ok(entries)
    }

    /// What GRUB's environment block says, wherever it is.
    fn environment(&self) -> Vec<(String, String)> {
        let paths = GRUB_FOLDERS.map(|folder| format!("{}/{folder}/grubenv", self.base));
        let block = paths.iter().find_map(|path| self.read(path));
        grub::environment(&block.unwrap_or_default())
    }

    /// The newest kernel, where nothing says which one boots.
    fn newest(&self) -> Result<Option<Boot>, InstalledError> {
        let names = self.names(if self.base.is_empty() { "/" } else { self.base })?;
        let version_of = |name: &str| {
            let version = name.strip_prefix("vmlinuz")?;
            let is_one = version.is_empty() || version.starts_with('-');
            let is_old = version.ends_with(".old") || version.contains("rescue");
            (is_one && !is_old).then(|| version.to_owned())
        };
        let versions = names.iter().filter_map(|name| version_of(name));
        let Some(version) = versions.max_by(|a, b| version::compare(a, b)) else {
            return Ok(None);
        };
        let in_here = |name: &String| names.contains(name);
        let initrds = INITRDS.map(|(before, behind)| format!("{before}{version}{behind}"));
        let initrd = initrds.into_iter().find(in_here);
        let path = |name: String| format!("{}/{name}", self.base);
        Ok(Some(Boot {
            title: match version.trim_start_matches('-') {
                "" => self.system.clone(),
                version => format!("{}, with Linux {version}", self.system),
            },
            kernel: path(format!("vmlinuz{version}")),
            arguments: vec!["ro".to_owned()],
            initrd: initrd.map(path).into_iter().collect(),
        }))
    }
}

/// A file that cannot be read is one that a script does not see.
impl Files for Place {
    fn read(&self, path: &str) -> Option<String> {
        self.config(path).ok().flatten()
    }

    fn size(&self, path: &str) -> Option<u64> {
        self.locate(path).ok().flatten().map(|file| file.size)
    }

    fn has_folder(&self, path: &str) -> bool {
        self.volume.has_folder(path).unwrap_or(false)
    }

    fn entries(&self) -> Vec<BlsEntry> {
        self.bls_entries().unwrap_or_default()
    }
}

fn chosen(
    choice: Result<Choice, grub::GrubError>,
    path: String,
) -> Result<Option<Boot>, InstalledError> {
    match choice {
        Ok(Choice::Boot(boot)) => Ok(Some(boot)),
        Ok(Choice::Nothing) => Ok(None),
        Ok(Choice::Other(title)) => Err(InstalledError::NoLinux {
            title: super::printable(&title),
        }),
        Err(source) => Err(InstalledError::Script { path, source }),
    }
}

fn reading(volume: &Volume, path: &str, source: Ext4Error) -> InstalledError {
    InstalledError::Read {
        path: super::printable(path),
        partition: super::name_of(volume.partition.number),
        source,
    }
}
