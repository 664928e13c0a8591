//! GRUB's environment block, which keeps variables from one start to the next.
//!
//! ```text
//! # GRUB Environment Block
//! saved_entry=0a1b-6.5.6-300.fc39.x86_64
//! kernelopts=root=UUID=... ro
//! ############…                                 to the end of its 1024 bytes
//! ```
//! A backslash, and a line's end in a value, stand behind a backslash.

/// The variables of a block, in its order.
pub(in crate::installed) fn parse(block: &str) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let mut line = String::new();
    let mut characters = block.chars();
    // A last line without an end is padding, or was cut off.
    while let Some(character) = characters.next() {
        match character {
            '\\' => line.extend(characters.next()),
            '\n' => {
                let variable = line.split_once('=').filter(|_| !line.starts_with('#'));
                variables.extend(variable.map(|(name, value)| (name.to_owned(), value.to_owned())));
                line.clear();
            }
            character => line.push(character),
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_and_padding_is_not() {
        let block = "# GRUB Environment Block\n# WARNING\nsaved_entry=a>b\nkernelopts=root=UUID=1 ro\n\
                     two=a\\\nb\\\\c\nempty=\n####";
        let expected = [
            ("saved_entry", "a>b"),
            ("kernelopts", "root=UUID=1 ro"),
            ("two", "a\nb\\c"),
            ("empty", ""),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parse(block), expected);
        assert_eq!(parse(""), []);
        assert_eq!(parse("####"), []);
    }
}
