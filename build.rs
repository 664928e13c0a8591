//! Links what fat LTO would lose, as `vmm-glue/build.rs` does for the full program.

/// Functions of libc that `std` refers to weakly, and others plainly. Fat LTO merges both into a
/// weak reference, for which the linker takes nothing out of a static libc: a call then goes to
/// address 0.
const WEAK_IN_STD: [&str; 2] = ["gettid", "statx"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for function in WEAK_IN_STD {
        println!("cargo::rustc-link-arg-bins=-Wl,--undefined={function}");
        println!("cargo::rustc-link-arg-examples=-Wl,--undefined={function}");
    }
}
