//! The host's pool of 2 MiB pages, as `/sys/kernel/mm/hugepages` shows it
//! (Linux `Documentation/admin-guide/mm/hugetlbpage.rst`).

/// Bytes in one huge page of the pool that VMs use.
const PAGE: u64 = 2 << 20;

/// Bytes in free 2 MiB pages that nobody has reserved. A host without the pool has none.
pub fn free_bytes() -> u64 {
    let count = |file| -> u64 {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{file}");
        std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let pages = count("free_hugepages").saturating_sub(count("resv_hugepages"));
    pages.saturating_mul(PAGE)
}
