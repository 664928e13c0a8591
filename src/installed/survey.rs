//! What is on a disk: which partition is a root, which a `/boot`, and what only has a name.
//!
//! ```text
//! partition ─ content::name ─▶ ext4 ─▶ /etc and os-release: a root
//!                          │       └─▶ grub.cfg, entries or a kernel at its top: a /boot of its own
//!                          └─▶ all else: its name, for the message where nothing boots
//! ```

use std::rc::Rc;

use ext4_view::Ext4Error;

use super::cmdline::{self, CmdlineError};
use super::ext4::Volume;
use super::grub::Boot;
use super::place::{self, Place};
use super::{
    Installed, InstalledError, MAX_CONFIG, MAX_INITRD, MAX_INITRDS, MAX_KERNEL, PathInImage,
    content, name_of, partitions, printable,
};
use crate::disk::ReadAt;

/// What is on a disk.
pub(super) struct Survey {
    /// With `/etc` and os-release, and the system's name out of that.
    roots: Vec<(Rc<Volume>, String)>,
    /// Every ext4 that can be read.
    volumes: Vec<Rc<Volume>>,
    /// Partitions that look like a `/boot` of its own.
    boots: Vec<Rc<Volume>>,
    /// Names of what is on the partitions, once each.
    found: Vec<&'static str>,
    /// What was wrong with the first ext4 that cannot be read.
    trouble: Option<InstalledError>,
}

impl Survey {
    pub(super) fn read(disk: &Rc<dyn ReadAt>) -> Result<Self, InstalledError> {
        let partitions = partitions::read(disk.as_ref()).map_err(InstalledError::Table)?;
        let mut it = Self {
            roots: Vec::new(),
            volumes: Vec::new(),
            boots: Vec::new(),
            found: Vec::new(),
            trouble: None,
        };
        for partition in &partitions {
            let Some(name) = content::name(disk.as_ref(), partition) else {
                continue;
            };
            if !it.found.contains(&name) {
                it.found.push(name);
            }
            if name != content::EXT4 {
                continue;
            }
            let seen = Volume::open(disk, partition).and_then(|volume| Ok(it.add(volume)?));
            if let Err(source) = seen {
                it.trouble = it.trouble.or(Some(InstalledError::Unreadable {
                    partition: name_of(partition.number),
                    source,
                }));
            }
        }
        Ok(it)
    }

    fn add(&mut self, volume: Volume) -> Result<(), Ext4Error> {
        let volume = Rc::new(volume);
        self.volumes.push(Rc::clone(&volume));
        if let Some(system) = system(&volume)? {
            self.roots.push((volume, system));
        } else if place::is_boot(&volume)? {
            self.boots.push(volume);
        }
        Ok(())
    }

    /// Where to look for a kernel, the likeliest first.
    pub(super) fn places(&self) -> Vec<Place> {
        let others: Vec<_> = self
            .roots
            .iter()
            .map(|(volume, _)| Rc::clone(volume))
            .collect();
        let system = self.roots.first().map_or("Linux", |(_, system)| system);
        let boots = self
            .boots
            .iter()
            .map(|boot| Place::new(boot, "", &others, system));
        let roots = self.roots.iter();
        let roots = roots.map(|(root, system)| Place::new(root, "/boot", &[], system));
        boots.chain(roots).collect()
    }

    /// Why nothing boots.
    pub(super) fn nothing(self) -> InstalledError {
        if let Some(trouble) = self.trouble {
            return trouble;
        }
        if let Some((_, system)) = self.roots.into_iter().next() {
            return InstalledError::NoKernel { system };
        }
        let found = match self.found.as_slice() {
            [] => "nothing that is known".to_owned(),
            found => found.join(", "),
        };
        InstalledError::NoSystem { found }
    }

    /// What `boot` says, found on the disk.
    pub(super) fn installed(&self, place: &Place, boot: Boot) -> Result<Installed, InstalledError> {
        let title = printable(&boot.title);
        let find = |path: &String| {
            place.locate(path)?.ok_or_else(|| InstalledError::Missing {
                title: title.clone(),
                path: printable(path),
            })
        };
        let kernel = find(&boot.kernel)?;
        if boot.initrd.len() > MAX_INITRDS {
            return Err(InstalledError::TooManyInitrds { title });
        }
        let initrd = boot
            .initrd
            .iter()
            .map(find)
            .collect::<Result<Vec<_>, _>>()?;
        let sum = |sum: u64, part: &PathInImage| sum.saturating_add(part.size);
        let largest = [(&kernel, kernel.size, MAX_KERNEL)].into_iter().chain(
            initrd
                .last()
                .map(|last| (last, initrd.iter().fold(0, sum), MAX_INITRD)),
        );
        for (file, size, limit) in largest {
            if size > limit.bytes() {
                let path = file.path.clone();
                return Err(InstalledError::TooLarge { path, limit });
            }
        }
        let root = |number| self.root(number, !initrd.is_empty());
        match cmdline::build(&boot.arguments, root) {
            Ok(cmdline) => Ok(Installed {
                title,
                kernel,
                initrd,
                cmdline,
            }),
            Err(CmdlineError::TooLong) => Err(InstalledError::LongCmdline { title }),
            Err(CmdlineError::NoRoot) => Err(InstalledError::NoRoot { title }),
            Err(CmdlineError::ControlCharacter) => Err(InstalledError::ControlCharacter { title }),
        }
    }

    /// How the kernel finds the partition with this `number`, or else the root file system. Only an initrd
    /// can look for a file system by its UUID.
    fn root(&self, number: Option<u32>, has_initrd: bool) -> Option<String> {
        let mut volumes = self.volumes.iter();
        let numbered = volumes.find(|it| number.is_some() && it.partition.number == number);
        let volume = match numbered {
            Some(volume) => volume,
            None if number.is_none() => &self.roots.first()?.0,
            None => return None,
        };
        Some(match (&volume.partition.part_uuid, has_initrd) {
            (_, true) => format!("UUID={}", volume.uuid),
            (Some(part_uuid), false) => format!("PARTUUID={part_uuid}"),
            (None, false) => "/dev/vda".to_owned(),
        })
    }
}

/// The name of the system whose root file system `volume` is; nothing if it is none.
fn system(volume: &Rc<Volume>) -> Result<Option<String>, Ext4Error> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        let Some((path, size)) = volume.file(path)? else {
            continue;
        };
        if !volume.has_folder("/etc")? {
            continue;
        }
        let file = PathInImage::new(path, size, Rc::clone(volume));
        let mut text = Vec::new();
        let text = match file.copy(MAX_CONFIG, &mut text) {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => String::new(),
        };
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let name = printable(name.unwrap_or("Linux").trim().trim_matches(['"', '\'']));
        return Ok(Some(name));
    }
    Ok(None)
}
