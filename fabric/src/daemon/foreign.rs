//! Whether somebody else's code was loaded into this process at its start.
//!
//! Code that was preloaded reads every key and every page, and no later check can be trusted to find it. What is looked at
//! here is what asked for it: the environment that the kernel kept from the moment of exec, which a library that hides its
//! variable cannot change, and the loader, which takes the same wishes on its command line.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{env, fs};

/// Variables that make the loader, the C library or libibverbs load code of somebody's choice. Any that begins with `LD_` is
/// one of them, but for `LD_BIND_NOW`, which loads nothing.
pub const VARIABLES: [&str; 4] = ["LD_", "GCONV_PATH", "RDMAV_DRIVERS", "IBV_DRIVERS"];
/// These load nothing.
const HARMLESS: [&str; 1] = ["LD_BIND_NOW"];

/// Foreign code may be in this process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForeignCode {
    /// A variable asks for it.
    #[error(
        "{0} is set, which loads other code into a daemon that holds keys and memory: start it without, with `env -u {0} …`"
    )]
    Variable(String),
    /// The loader was started by hand, and could be told the same.
    #[error("started through the loader {0}, which could load other code: start the program itself")]
    Loader(String),
}

/// Refuses to go on where foreign code was asked for. To be called first, before the process makes itself undumpable.
///
/// # Errors
/// [`ForeignCode`].
pub fn refuse() -> Result<(), ForeignCode> {
    if let Ok(program) = env::current_exe()
        && is_loader(&program)
    {
        return Err(ForeignCode::Loader(program.display().to_string()));
    }
    // What there was at exec, and what there is now.
    let at_exec = fs::read("/proc/self/environ").unwrap_or_default();
    let now: Vec<_> = env::vars_os().collect();
    let at_exec = at_exec.split(|byte| *byte == 0).filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((&pair[..at], &pair[at + 1..]))
    });
    let now = now.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    match at_exec.chain(now).find(|(name, value)| loads(name, value)) {
        Some((name, _)) => Err(ForeignCode::Variable(String::from_utf8_lossy(name).into_owned())),
        None => Ok(()),
    }
}

/// Whether a variable loads code. An empty one does not.
fn loads(name: &[u8], value: &[u8]) -> bool {
    let harmless = HARMLESS.iter().any(|harmless| harmless.as_bytes() == name);
    let wanted = |variable: &&str| match *variable {
        "LD_" => name.starts_with(b"LD_"),
        variable => name == variable.as_bytes(),
    };
    !value.is_empty() && !harmless && VARIABLES.iter().any(wanted)
}

fn is_loader(program: &Path) -> bool {
    let name = program.file_name().map(OsStr::as_bytes).unwrap_or_default();
    name.starts_with(b"ld-") || name.starts_with(b"ld.so") || name.starts_with(b"ld64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_load_code_are_known() {
        for name in [
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "LD_AUDIT",
            "LD_ANYTHING_NEW",
            "GCONV_PATH",
            "RDMAV_DRIVERS",
            "IBV_DRIVERS",
        ] {
            assert!(loads(name.as_bytes(), b"/tmp/x.so"), "{name}");
            assert!(!loads(name.as_bytes(), b""), "{name} is empty");
        }
        for name in ["PATH", "LD", "LD_BIND_NOW", "BUILD_PRELOAD", "GCONV_PATHS", "RUST_LOG"] {
            assert!(!loads(name.as_bytes(), b"1"), "{name}");
        }
    }

    #[test]
    fn loaders_are_known_by_their_names() {
        for loader in [
            "/lib64/ld-linux-x86-64.so.2",
            "/usr/lib/ld-linux-aarch64.so.1",
            "/lib/ld-musl-x86_64.so.1",
            "/lib/ld.so.1",
        ] {
            assert!(is_loader(Path::new(loader)), "{loader}");
        }
        assert!(!is_loader(Path::new("/usr/local/bin/overbank-provider")));
    }
}
