//! The host's memory, as `/proc/meminfo` shows it (proc_meminfo(5)).

/// Bytes of memory that the kernel manages; 0 where it does not say.
pub fn total_bytes() -> u64 {
    std::fs::read_to_string("/proc/meminfo").map_or(0, |text| total_of(&text))
}

fn total_of(text: &str) -> u64 {
    let mut lines = text.lines();
    let total = lines.find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0_u64).saturating_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_whatever_stands_around_it() {
        let text = "MemFree:        27012 kB\nMemTotal:       32817300 kB\n";
        assert_eq!(total_of(text), 32_817_300 << 10);
        assert_eq!(total_of("MemFree: 7 kB\n"), 0);
        assert_eq!(total_of("MemTotal: many\n"), 0);
        assert!(total_bytes() > 1 << 20);
    }
}
