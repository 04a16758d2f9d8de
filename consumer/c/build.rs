//! Names the shared library as programs are to look for it: by the version below which what they were built against holds.

fn main() {
    // Until 1.0 a minor release may change what was there.
    let version = |part: &str| std::env::var(format!("CARGO_PKG_VERSION_{part}")).expect("cargo says it");
    let abi = match version("MAJOR").as_str() {
        "0" => format!("0.{}", version("MINOR")),
        major => major.to_owned(),
    };
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liboverbank.so.{abi}");
    println!("cargo::rerun-if-changed=build.rs");
}
