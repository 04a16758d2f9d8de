//! How the library is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // What this library calls of what it replaces is its own, whatever allocator the program brings: what our own code
    // needs never waits for a lock of the program's.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic-functions");
    // Every thread that our own code starts comes by `interpose/thread.rs`.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--wrap=pthread_create");
    // It cannot be unloaded: the program's memory is in it.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
