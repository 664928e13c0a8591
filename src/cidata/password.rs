//! root's password, as a guest's `/etc/shadow` has it.
//!
//! ```text
//! $6$rounds=5000$<salt, 16 characters>$<hash, 86 characters>      crypt(5), SHA-512
//! ```
//! Of yescrypt, which newer guests prefer, older ones know nothing; every guest knows this one.

use std::fmt;

use sha_crypt::password_hash::Error as HashError;
use sha_crypt::{PasswordHasher, ShaCrypt};

/// The longest password, in bytes: musl's getpass(3) reads no more of what is typed.
pub const MAX_PASSWORD: usize = 127;

/// Random bytes of a salt: 16 characters of six bits, the most that crypt(5) takes.
pub const SALT_BYTES: usize = 12;

/// What a password is known by. It stands in a VM's volume and is not shown otherwise.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

/// Why a text is not a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PasswordError {
    /// One that anybody knows.
    #[error("the root password is empty: leave it out for a VM without one")]
    Empty,
    /// One that somewhere would be cut.
    #[error(
        "the root password has {0} bytes, but no more than {MAX_PASSWORD} can be typed everywhere"
    )]
    TooLong(usize),
    /// One that nobody can type, such as the line end of a file that it was read from.
    #[error("the root password has a control character, such as a line end, which cannot be typed")]
    ControlCharacter,
    /// Not expected of any password.
    #[error("cannot hash the root password")]
    Hash(#[source] HashError),
}

impl PasswordHash {
    /// The hash of `password`; the `salt` is from a random source, another one for each password.
    ///
    /// # Errors
    /// The password is empty, too long, or cannot be typed.
    pub fn new(password: &str, salt: [u8; SALT_BYTES]) -> Result<Self, PasswordError> {
        check(password)?;
        let hash = ShaCrypt::SHA512
            .hash_password_with_salt(password.as_bytes(), &salt)
            .map_err(PasswordError::Hash)?;
        Ok(Self(hash.as_str().to_owned()))
    }

    /// As crypt(5) writes it.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(password: &str) -> Result<(), PasswordError> {
    if password.is_empty() {
        return Err(PasswordError::Empty);
    }
    if password.len() > MAX_PASSWORD {
        return Err(PasswordError::TooLong(password.len()));
    }
    if password.chars().any(char::is_control) {
        return Err(PasswordError::ControlCharacter);
    }
    Ok(())
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: [u8; SALT_BYTES] = [7; SALT_BYTES];

    #[test]
    fn what_is_not_a_password_is_refused_with_a_sentence() {
        let long = "x".repeat(MAX_PASSWORD + 1);
        for (password, said) in [
            ("", "is empty"),
            (long.as_str(), "has 128 bytes, but no more than 127"),
            ("secret\n", "control character"),
            ("a\tb", "control character"),
            ("a\0", "control character"),
            ("a\u{85}", "control character"),
        ] {
            let error = PasswordHash::new(password, SALT).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
            assert!(password.is_empty() || !error.contains(password), "{error}");
        }
        assert!(PasswordHash::new(&long[1..], SALT).is_ok());
    }

    #[test]
    fn a_hash_is_of_its_password_and_of_its_salt() {
        let hash = |password, salt| PasswordHash::new(password, salt).unwrap();
        assert_eq!(hash("secret", SALT), hash("secret", SALT));
        assert_ne!(hash("secret", SALT), hash("Secret", SALT));
        assert_ne!(hash("secret", SALT), hash("secret", [8; SALT_BYTES]));
    }

    #[test]
    fn neither_the_password_nor_its_hash_is_shown() {
        let hash = PasswordHash::new("secret", SALT).unwrap();
        assert_eq!(format!("{hash:?}"), "PasswordHash(not shown)");
        assert!(hash.as_str().starts_with("$6$") && !hash.as_str().contains("secret"));
    }
}
