//! The host's pool of 2 MiB pages, as `/sys/kernel/mm/hugepages` shows it
//! (Linux `Documentation/admin-guide/mm/hugetlbpage.rst`).

/// Bytes in one huge page of the pool that VMs use.
const PAGE: u64 = 2 << 20;

/// Bytes in free 2 MiB pages that nobody has reserved. A host without the pool has none.
pub fn free_bytes() -> u64 {
    let pages = count("free_hugepages").saturating_sub(count("resv_hugepages"));
    pages.saturating_mul(PAGE)
}

/// Bytes in all 2 MiB pages of the pool, in use or not.
pub fn pool_bytes() -> u64 {
    count("nr_hugepages").saturating_mul(PAGE)
}

fn count(file: &str) -> u64 {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{file}");
    let text = std::fs::read_to_string(path).ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
