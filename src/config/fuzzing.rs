//! Where the fuzz target enters: a function that takes any bytes.

use std::num::NonZeroUsize;
use std::path::Path;

use super::{MAX_RUN_DIR, Settings};

/// A config file.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let settings = Settings::from_toml(text, Path::new("/etc/cocoon.toml"));
    let decided = settings.and_then(|it| it.decide(Path::new("/here"), NonZeroUsize::MIN));
    if let Ok(config) = decided {
        for folder in [&config.root_dir, &config.run_dir, &config.log_dir] {
            assert!(folder.is_absolute(), "{folder:?}");
        }
        assert!(config.run_dir.as_os_str().len() <= MAX_RUN_DIR);
        assert!(!config.stop_timeout.is_zero());
    }
}

/// So that the entry stays alive where nobody fuzzes.
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // A look, not a search.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_harm_the_reader_of_config_files(
            folder in "[a/.]{0,90}", number in any::<u64>(), data in any::<Vec<u8>>()
        ) {
            config(&data);
            config(format!("root_dir = '{folder}'\nstop_timeout_seconds = {number}\n").as_bytes());
        }
    }
}
