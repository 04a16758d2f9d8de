//! Whether somebody else's code was loaded into this process at its start.
//!
//! Code that was preloaded reads every key and every page, and no later check can be trusted to find it: it runs before this
//! one, and can hide what loaded it from whatever is read here. So this finds accidents and configuration (a profile that sets
//! LD_PRELOAD or LD_LIBRARY_PATH, a machine where every program is preloaded), not a library that does not want to be
//! found. What is looked at is what asks for it: the environment now and at the moment of exec, `/etc/ld.so.preload`, and the
//! loader, which takes the same wishes on its command line.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{env, fs};

/// Variables that make the loader, the C library or libibverbs load code of somebody's choice. Any that begins with `LD_` is
/// one of them, but for `LD_BIND_NOW`, which loads nothing.
pub const VARIABLES: [&str; 4] = ["LD_", "GCONV_PATH", "RDMAV_DRIVERS", "IBV_DRIVERS"];
/// Names libraries that the loader loads into every program.
const PRELOAD: &str = "/etc/ld.so.preload";
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
    /// The system asks for it.
    #[error(
        "{PRELOAD} loads {0} into every program, also into a daemon that holds keys and memory: take it out of there, or start \
         the daemon where that file is not seen (InaccessiblePaths={PRELOAD} in its systemd unit)"
    )]
    Everywhere(String),
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
    // Where it cannot be read, the loader could not either.
    if let Some(library) = fs::read(PRELOAD).ok().as_deref().and_then(preloaded) {
        return Err(ForeignCode::Everywhere(library));
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

/// The first library that such a file names; all after a `#` on a line is a comment.
fn preloaded(file: &[u8]) -> Option<String> {
    let lines = file.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b'#').next());
    let mut names = lines.flat_map(|line| line.split(|byte| byte.is_ascii_whitespace() || *byte == b':'));
    names.find(|name| !name.is_empty()).map(|name| String::from_utf8_lossy(name).into_owned())
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
    fn what_is_loaded_into_every_program_is_known() {
        for file in ["", "\n", "# none\n", "  \t\n#/lib/a.so\n"] {
            assert_eq!(preloaded(file.as_bytes()), None, "{file:?}");
        }
        for file in ["/lib/a.so", "# one\n\n /lib/a.so /lib/b.so\n", ":/lib/a.so:/lib/b.so", "/lib/a.so# it"] {
            assert_eq!(preloaded(file.as_bytes()).as_deref(), Some("/lib/a.so"), "{file:?}");
        }
        let said = ForeignCode::Everywhere("/lib/a.so".to_owned()).to_string();
        assert!(
            said.contains("/etc/ld.so.preload") && said.contains("/lib/a.so") && said.contains("take it out"),
            "{said}"
        );
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
