//! Links what fat LTO would lose. The full program is built with this file, too.

/// Functions of libc that `std` refers to weakly, to do without them on old systems, and others
/// plainly. Fat LTO merges both into a weak reference, for which the linker takes nothing out of a
/// static libc: the call then goes to address 0, as it did in every vCPU thread.
const WEAK_IN_STD: [&str; 2] = ["gettid", "statx"];

fn main() {
    println!("cargo::rerun-if-changed={}", file!());
    for function in WEAK_IN_STD {
        println!("cargo::rustc-link-arg=-Wl,--undefined={function}");
    }
}
