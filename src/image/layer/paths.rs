//! Names in an archive, taken apart. Pure.

use super::Refusal;

/// Longest path and link target (`PATH_MAX` of Linux): what is longer no program could open.
const PATH_MAX: usize = 4096;
/// Longest name of a file (`NAME_MAX` of Linux, and of EROFS).
const NAME_MAX: usize = 255;

/// The names along a path from the root; none for the root itself. A leading `/` and `.` mean the
/// root, as to all tar implementations; `..` takes a name back.
///
/// # Errors
/// The path is empty, too long, has a NUL or leaves the root.
pub(in crate::image) fn components(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    if path.is_empty() || path.contains(&0) {
        return Err(Refusal::BadName);
    }
    if path.len() > PATH_MAX {
        return Err(Refusal::PathTooLong);
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or(Refusal::LeavesRoot)?;
            }
            _ if name.len() > NAME_MAX => return Err(Refusal::NameTooLong),
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// The target of a symbolic link, which may be any text: it has a meaning only in the guest.
///
/// # Errors
/// The target is empty, has a NUL, or could not be stored in a Linux file system.
pub(super) fn link_target(target: &[u8]) -> Result<&[u8], Refusal> {
    if target.is_empty() || target.len() >= PATH_MAX || target.contains(&0) {
        return Err(Refusal::BadLinkTarget);
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_or_refused() {
        let long = [b'x'; 256];
        type Row<'a> = (&'a [u8], Result<&'a [&'a [u8]], Refusal>);
        let table: [Row<'_>; 14] = [
            (b"a/b", Ok(&[b"a", b"b"])),
            (b"./a//b/", Ok(&[b"a", b"b"])),
            (b"/a/./b", Ok(&[b"a", b"b"])),
            (b"./", Ok(&[])),
            (b"/", Ok(&[])),
            (b"a/../b", Ok(&[b"b"])),
            (b"...", Ok(&[b"..."])),
            (b"\xff\n", Ok(&[b"\xff\n"])),
            (b"..", Err(Refusal::LeavesRoot)),
            (b"/../a", Err(Refusal::LeavesRoot)),
            (b"a/../../b", Err(Refusal::LeavesRoot)),
            (b"", Err(Refusal::BadName)),
            (b"a\0b", Err(Refusal::BadName)),
            (&long, Err(Refusal::NameTooLong)),
        ];
        for (path, expected) in table {
            let expected = expected.map(<[&[u8]]>::to_vec);
            assert_eq!(components(path), expected, "{}", path.escape_ascii());
        }
        assert_eq!(components(&[b'/'; 4097]), Err(Refusal::PathTooLong));
        assert!(components(&long[1..]).is_ok());
    }
}
